"""All checks, in the order of the page."""

from diffcli.diagnosis.averages import Averages
from diffcli.diagnosis.calibration import Calibration
from diffcli.diagnosis.fpe import FokkerPlanck
from diffcli.diagnosis.gap import Gap
from diffcli.diagnosis.loss import Loss
from diffcli.diagnosis.marginals import Marginals
from diffcli.diagnosis.path_dependence import PathDependence
from diffcli.diagnosis.regions import Regions
from diffcli.diagnosis.round_trip import RoundTrip

CHECKS = {
    check.name: check
    for check in (
        Loss(),
        Regions(),
        FokkerPlanck(),
        PathDependence(),
        Calibration(),
        Marginals(),
        RoundTrip(),
        Gap(),
        Averages(),
    )
}
