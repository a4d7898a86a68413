from diffcli.diffusion.guidance.autoguided import Autoguided
from diffcli.diffusion.guidance.base import Wrapper
from diffcli.diffusion.guidance.classifier_free import ClassifierFree
from diffcli.diffusion.guidance.classifier_guided import ClassifierGuided, ExactClassifier
from diffcli.diffusion.guidance.conditioned import Conditioned
from diffcli.diffusion.guidance.guided import Guided
from diffcli.diffusion.guidance.rescaled import Rescaled

__all__ = [
    "Autoguided",
    "ClassifierFree",
    "ClassifierGuided",
    "Conditioned",
    "ExactClassifier",
    "Guided",
    "Rescaled",
    "Wrapper",
]
