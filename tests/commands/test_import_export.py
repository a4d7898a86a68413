"""Models go out and come back the same to the last bit, and agree with diffusers, whose files they are."""

import json
import shutil

import numpy as np
import pytest
import torch

from diffcli import checkpoint
from diffcli.commands.build import build
from diffcli.commands.import_ import read_model
from diffcli.diffusion.grid import Levels
from diffcli.diffusion.samplers import DDIM, Ancestral, sample
from diffcli.errors import DiffcliError
from diffcli.interchange import read_folder
from diffcli.interchange.diffusers_folder import chain, scheduler_betas

diffusers = pytest.importorskip("diffusers")
SMALL = dict(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=[8, 16],
    down_block_types=["DownBlock2D", "AttnDownBlock2D"],
    up_block_types=["AttnUpBlock2D", "UpBlock2D"],
    norm_num_groups=4,
    layers_per_block=1,
)
RULES = {
    "linear": dict(beta_schedule="linear", beta_start=0.001, beta_end=0.6),
    "scaled_linear": dict(beta_schedule="scaled_linear", beta_start=0.002, beta_end=0.4),
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
    "sigmoid": dict(beta_schedule="sigmoid", beta_start=0.001, beta_end=0.3),
    "trained": dict(trained_betas=[0.01 * i for i in range(1, 21)]),
}
T = 20
QUICK = ("likelihood.divergence=hutchinson", "likelihood.probes=1", "likelihood.tol=0.5")


def published(folder, prediction="epsilon", rule="linear", **unet):
    """A random model of diffusers and its scheduler, as that library saves them."""
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**SMALL | unet).eval()
    model.save_pretrained(folder)
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=T, prediction_type=prediction, clip_sample=False, **RULES[rule]
    )
    scheduler.save_pretrained(folder)
    return model, scheduler


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    published(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy that may be spoilt."""
    return shutil.copytree(original, tmp_path / "model")


def imported(folder):
    """The denoiser of a folder, without the command."""
    content = read_folder(folder)
    denoiser = checkpoint.build_denoiser(content["config"]["denoiser"])
    checkpoint.load_weights(denoiser, content, "raw", folder)
    return denoiser.eval().requires_grad_(False)


def network_at(denoiser, x, i):
    """What the network says at diffusers' timestep i, through the denoiser."""
    return denoiser.parts(x, torch.tensor((i + 1) / denoiser.network.timesteps, dtype=torch.float64))[2]


def same_network(denoiser, model, steps):
    torch.manual_seed(1)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        return all(torch.equal(network_at(denoiser, x, i), model(x, i, return_dict=False)[0]) for i in steps)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [T, 1000])
def test_betas_are_those_of_diffusers(rule, count):
    options = RULES[rule] | (
        dict(trained_betas=torch.linspace(1e-4, 0.02, count).tolist()) if rule == "trained" else {}
    )
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=count, **options)
    assert torch.equal(scheduler_betas(dict(scheduler.config)), scheduler.betas)
    assert torch.equal(scheduler_betas({}), diffusers.DDPMScheduler().betas)  # the defaults are the same too


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_an_imported_model_is_the_model(tmp_path, prediction):
    model, scheduler = published(tmp_path, prediction)
    denoiser = imported(tmp_path)
    assert same_network(denoiser, model, range(T))
    times = denoiser.sde.times
    assert (denoiser.sde.alpha(times) ** 2 - scheduler.alphas_cumprod).abs().max() < 1e-6
    # its x0 is the one that diffusers' scheduler makes of the same output
    torch.manual_seed(2)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for i in (0, 7, T - 1):
            x0 = scheduler.step(model(x, i).sample, i, x).pred_original_sample
            assert torch.allclose(denoiser(x, times[i]), x0, rtol=1e-4, atol=1e-5)


def test_the_clock_is_whole_where_it_was_trained(original):
    network = imported(original).network
    for count in (7, 20, 333, 1000, 4000):
        network.timesteps = count
        i = torch.arange(count)
        c_noise = (1000 * (i + 1).double() / count).float()
        assert torch.equal(network.timestep(c_noise), i.float())
        assert torch.allclose(network.timestep(c_noise + 300 / count), i + 0.3, atol=1e-2)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_samplers_equal_those_of_diffusers(tmp_path, prediction):
    model, scheduler = published(tmp_path, prediction)
    denoiser, shape = imported(tmp_path), (2, 1, 8, 8)
    times = Levels()(denoiser.sde, T - 1)
    torch.manual_seed(3)
    start = torch.randn(shape)

    def theirs(walker, **options):
        x, trace, generator = start, [], torch.Generator().manual_seed(4)
        walker.set_timesteps(T)
        for i in walker.timesteps:
            x = walker.step(model(x, i).sample, i, x, generator=generator, **options).prev_sample
            trace.append(x)
        return trace

    def ours(sampler, last):
        trace, generator = [], torch.Generator().manual_seed(4)
        draw = lambda _: torch.randn(shape, generator=generator)  # noqa: E731
        end = sample(denoiser, sampler, start, times, draw, last, lambda _, x: trace.append(x)).x
        return [*trace, end]

    with torch.no_grad():
        ddim = theirs(diffusers.DDIMScheduler.from_config(scheduler.config, set_alpha_to_one=True), eta=0.0)
        ddpm = theirs(scheduler)
        pairs = [
            *zip(ddim, ours(DDIM(), "denoise"), strict=True),
            *zip(ddpm, ours(DDIM(eta=1.0), "denoise"), strict=True),
            *zip(ddpm, ours(Ancestral(), "denoise"), strict=True),
        ]
    for their, our in pairs:
        assert (their - our).norm() < 2e-5 * their.norm()
    assert (ddim[-1] - ddpm[-1]).norm() > 0.1 * ddim[-1].norm()


def test_import_sample_export_and_back(cli, original, tmp_path):
    done = cli("import", f"path={original}", "out=run")
    assert done.code == 0, done.err
    assert "timestep_spacing=leading" in done.out
    content = checkpoint.read(tmp_path / "run/checkpoints/last.ckpt")
    assert content["shape"] == [1, 8, 8]
    assert content["config"]["data"] == {"_target_": "diffcli.data.blank.Blank", "shape": [1, 8, 8]}
    drawn = cli("sample", "ckpt=run/checkpoints/last.ckpt", "n=2", "sampler=ddim", "grid=levels", "out=drawn")
    assert drawn.code == 0, drawn.err
    assert (tmp_path / "drawn/grid.png").is_file()
    refusal = cli("nll", "ckpt=run/checkpoints/last.ckpt", "out=no")
    assert (refusal.code, "data=blank has no items" in refusal.err) == (2, True)
    measured = cli("nll", "ckpt=run/checkpoints/last.ckpt", "data=digits", "n=1", *QUICK, "out=nll")
    assert measured.code == 0, measured.err

    done = cli("export", "ckpt=run/checkpoints/last.ckpt", "out=files")
    assert done.code == 0, done.err
    assert "diffusers loads this folder" in done.out
    model = diffusers.UNet2DModel.from_pretrained(tmp_path / "files", local_files_only=True)
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "files", local_files_only=True)
    ours = checkpoint.load_denoiser(tmp_path / "run/checkpoints/last.ckpt")
    assert same_network(ours, model, range(T))
    assert scheduler.config.prediction_type == "epsilon"
    assert torch.equal(scheduler.betas, diffusers.DDPMScheduler.from_pretrained(original).betas)
    assert (ours.sde.alpha(ours.sde.times) ** 2 - scheduler.alphas_cumprod).abs().max() < 1e-6

    again = cli("import", "path=files", "out=again")  # by its own files
    assert again.code == 0, again.err
    first, second = (checkpoint.read(tmp_path / name / "checkpoints/last.ckpt") for name in ("run", "again"))
    assert first["config"] == second["config"]
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert all(torch.equal(v, second["state_dict"][k]) for k, v in first["state_dict"].items())
    for name in ("model.json", "model.safetensors"):  # by those of diffusers alone
        (tmp_path / "files" / name).unlink()
    assert read_folder(tmp_path / "files")["config"]["denoiser"] == first["config"]["denoiser"]
    assert same_network(imported(tmp_path / "files"), model, (0, T - 1))


def test_a_pipeline_is_read(cli, original, tmp_path):
    pipeline = diffusers.DDPMPipeline(
        diffusers.UNet2DModel.from_pretrained(original), diffusers.DDIMScheduler.from_pretrained(original)
    )
    pipeline.save_pretrained(tmp_path / "pipe")
    for path in ("pipe", "pipe/unet"):
        content = read_folder(tmp_path / path)
        assert content["config"] == read_folder(original)["config"]
    done = cli("import", "path=pipe", "data=digits", "dry_run=true")
    assert done.code == 0, done.err
    assert "would import" in done.out
    assert not (tmp_path / "outputs").exists()


def test_the_data_may_be_chosen_and_must_fit(cli, original, tmp_path):
    done = cli("import", f"path={original}", "data=digits", "out=run")
    assert done.code == 0, done.err
    assert checkpoint.read(tmp_path / "run/checkpoints/last.ckpt")["config"]["data"]["_target_"].endswith("Digits")
    for words, sentence in (
        (("data=moons",), "items of shape (2,), the model takes (1, 8, 8)"),
        (("network=mlp",), "the network is the model's"),
        (("data=blank", "data.shape=[1,16,16]"), "items of shape (1, 16, 16)"),
        (("data=blank", "data.levels=1"), "at least 2 levels"),
    ):
        refusal = cli("import", f"path={original}", *words, "out=no")
        assert refusal.code == 2, refusal.err
        assert sentence in refusal.err
        assert not (tmp_path / "no").exists()


def test_a_model_without_a_size_takes_the_datas(cli, folder, tmp_path):
    change(folder / "config.json", sample_size=None)
    refusal = cli("import", f"path={folder}")
    assert refusal.code == 2
    assert "does not say the size" in refusal.err
    done = cli("import", f"path={folder}", "data=blank", "data.shape=[1,4,8]", "out=run")
    assert done.code == 0, done.err
    content = checkpoint.read(tmp_path / "run/checkpoints/last.ckpt")
    assert content["shape"] == content["config"]["denoiser"]["network"]["shape"] == [1, 4, 8]


@pytest.mark.parametrize(
    ("unet", "label", "wrong"),
    [
        (dict(num_class_embeds=5), torch.tensor([0, 4, 2]), None),
        (dict(class_embed_type="timestep"), torch.tensor([0, 40, 2]), None),
        (dict(class_embed_type="identity"), None, torch.zeros(3, 5)),
    ],
    ids=["classes", "number", "vector"],
)
def test_conditions_of_a_published_model(tmp_path, unet, label, wrong):
    model, _ = published(tmp_path, **unet)
    network = imported(tmp_path).network
    x, i = torch.randn(3, 1, 8, 8), torch.full((3,), 5)
    c_noise = torch.full((3,), 1000 * 6 / T)
    with torch.no_grad():
        if label is None:
            vector = torch.randn(3, 32)
            assert torch.equal(network(x, c_noise, vector=vector), model(x, i, vector).sample)
            assert torch.equal(network(x, c_noise), model(x, i, torch.zeros(3, 32)).sample)
            with pytest.raises(ValueError, match=r"\(3, 32\), got \(3, 5\)"):
                network(x, c_noise, vector=wrong)
        else:
            assert torch.equal(network(x, c_noise, label=label), model(x, i, label).sample)
            with pytest.raises(ValueError, match="needs a label"):
                network(x, c_noise)
            if "num_class_embeds" in unet:
                with pytest.raises(ValueError, match="from 0 to 4"):
                    network(x, c_noise, label=label + 1)


def test_a_published_model_of_classes_is_sampled_by_label_and_exported_so(cli, tmp_path):
    """Its own label is what diffusers calls class_labels; nothing says that one of them is none, so none is refused."""
    published(tmp_path / "theirs", num_class_embeds=5)
    done = cli("import", f"path={tmp_path / 'theirs'}", "out=run")
    assert done.code == 0, done.err
    assert "label=all" in done.out
    refusal = cli("sample", "ckpt=run/checkpoints/last.ckpt", "dry_run=true")
    assert refusal.code == 2
    assert "always told its label" in refusal.err
    assert cli("export", "ckpt=run/checkpoints/last.ckpt", "out=files").code == 0
    assert cli("import", "path=files", "out=back").code == 0
    for name in ("run", "back"):
        words = (
            f"ckpt={name}/checkpoints/last.ckpt",
            "label=[3,0]",
            "n=2",
            "steps=2",
            f"out=drawn_{name}",
            "sampler=ddim",
        )
        done = cli("sample", *words)
        assert done.code == 0, done.err
    ours, again = (np.load(tmp_path / f"drawn_{name}/samples.npy") for name in ("run", "back"))
    assert np.array_equal(ours, again)


def test_a_learned_clock_takes_the_nearest_step(tmp_path):
    model, _ = published(tmp_path, time_embedding_type="learned", num_train_timesteps=T)
    assert same_network(imported(tmp_path), model, range(T))


def test_old_names_of_attention_are_known(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = load_file(path)
    before = imported(folder).state_dict()
    for new, name in old.items():
        state = {k.replace(new, name): v for k, v in state.items()}
    assert sum(".proj_attn." in k for k in state) > 2
    save_file(state, path)
    assert all(torch.equal(v, before[k]) for k, v in imported(folder).state_dict().items())


# our own pair of files

NETWORKS = {
    "unet": dict(channels=8, multipliers=[1, 2], embedding="fourier", resample="block"),
    "mlp": dict(width=16, blocks=1, classes=3, vector=2),
    "dit": dict(width=16, depth=1, heads=2),
    "diffusers_unet": dict(config={k: v for k, v in SMALL.items() if "block" in k or "norm" in k}, vector=2),
}
PATHS = {"unet": "unet.UNet", "mlp": "mlp.MLP", "dit": "dit.DiT", "diffusers_unet": "diffusers_unet.DiffusersUNet"}


def made(path, network, prediction="Eps", sde=None, **more):
    """A checkpoint with random weights, and other ones as averages; its denoiser's config."""
    schedule = {"_target_": "diffcli.diffusion.schedule.Linear"}
    node = {
        "_target_": f"diffcli.diffusion.prediction.{prediction}",
        "sde": sde or {"_target_": "diffcli.diffusion.sde.VP", "schedule": schedule},
        "network": {"_target_": f"diffcli.networks.{PATHS[network]}", "shape": [1, 8, 8], **NETWORKS[network], **more},
    }
    torch.manual_seed(0)
    denoiser = build(node, "denoiser")
    weights = {f"denoiser.{k}" for k, _ in denoiser.named_parameters()}
    state = {f"denoiser.{k}": torch.randn(v.shape) * 0.2 for k, v in denoiser.state_dict().items()}
    ema = {k: v + 0.01 for k, v in state.items() if k in weights}
    data = {"_target_": "diffcli.data.blank.Blank", "shape": [1, 8, 8]}
    content = {"format": 1, "config": {"denoiser": node, "data": data}, "state_dict": state, "ema": ema}
    checkpoint.write(content | {"shape": [1, 8, 8], "global_step": 3}, path)
    return node


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("network", NETWORKS)
def test_our_own_files_bring_the_model_back(cli, tmp_path, network, weights):
    node = made(tmp_path / "here.ckpt", network)
    done = cli("export", "ckpt=here.ckpt", f"weights={weights}", "out=files")
    assert done.code == 0, done.err
    assert "not for diffusers" in done.out
    assert sorted(p.name for p in (tmp_path / "files").iterdir()) == ["model.json", "model.safetensors", "run.json"]
    done = cli("import", "path=files", "out=run")
    assert done.code == 0, done.err
    assert checkpoint.read(tmp_path / "run/checkpoints/last.ckpt")["config"]["denoiser"] == node
    before = checkpoint.load_denoiser(tmp_path / "here.ckpt", weights)
    after = checkpoint.load_denoiser(tmp_path / "run/checkpoints/last.ckpt")
    torch.manual_seed(5)
    x, t = torch.randn(4, 1, 8, 8), torch.linspace(0.1, 1, 4, dtype=torch.float64)
    assert torch.equal(before.eps(x, t), after.eps(x, t))
    other = checkpoint.load_denoiser(tmp_path / "here.ckpt", "raw" if weights == "ema" else "ema")
    assert not torch.equal(before.eps(x, t), other.eps(x, t))


@pytest.mark.parametrize("schedule", ["Linear", "Cosine"])
def test_any_vp_schedule_is_a_chain_on_the_models_clock(cli, tmp_path, schedule):
    sde = {"_target_": "diffcli.diffusion.sde.VP", "schedule": {"_target_": f"diffcli.diffusion.schedule.{schedule}"}}
    made(tmp_path / "here.ckpt", "diffusers_unet", "V", sde, vector=0, classes=3, timesteps=50)
    done = cli("export", "ckpt=here.ckpt", "out=files")
    assert done.code == 0, done.err
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "files")
    model = diffusers.UNet2DModel.from_pretrained(tmp_path / "files")
    denoiser = checkpoint.load_denoiser(tmp_path / "here.ckpt")
    t = torch.arange(1, 51, dtype=torch.float64) / 50
    inside = t <= denoiser.sde.t_max
    assert (denoiser.sde.alpha(t) ** 2 - scheduler.alphas_cumprod)[inside].abs().max() < 1e-6
    assert inside.sum() == (50 if schedule == "Linear" else 49)
    x, label = torch.randn(2, 1, 8, 8), torch.tensor([2, -1])
    with torch.no_grad():
        ours = denoiser.parts(x, t[30], label=label)[2]
        assert torch.equal(ours, model(x, 30, torch.tensor([2, 3])).sample)
        assert torch.equal(denoiser.parts(x, t[30])[2], model(x, 30, torch.tensor([3, 3])).sample)
    assert chain(denoiser, 50) == scheduler.betas.tolist()


def test_what_diffusers_has_no_model_for_is_said(cli, tmp_path):
    ve = {"_target_": "diffcli.diffusion.sde.VE", "schedule": {"_target_": "diffcli.diffusion.schedule.Geometric"}}
    for name, more, sentence in (
        ("a", dict(prediction="Score", vector=0), "predictions eps, v and x0"),
        ("b", dict(sde=ve, vector=0), "variance preserving"),
        ("c", dict(), "condition vector is no part"),
        ("d", dict(network="dit"), "no UNet2DModel"),
    ):
        made(tmp_path / f"{name}.ckpt", **dict(network="diffusers_unet") | more)
        done = cli("export", f"ckpt={name}.ckpt", f"out={name}")
        assert done.code == 0, done.err
        assert sentence in done.out
        assert not (tmp_path / name / "config.json").exists()


# refusals


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights(folder, edit, name="diffusion_pytorch_model.safetensors"):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / name)
    edit(state)
    save_file(state, folder / name)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


CONFIG, SCHEDULER, WEIGHTS = "config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"
SPOILT = {
    "no-config": (lambda f: (f / CONFIG).unlink(), 2, "holds no model"),
    "no-scheduler": (lambda f: (f / SCHEDULER).unlink(), 2, "noise levels are not known"),
    "no-weights": (lambda f: (f / WEIGHTS).unlink(), 2, f"has no {WEIGHTS}"),
    "pickled": (lambda f: (f / WEIGHTS).rename(f / "diffusion_pytorch_model.bin"), 2, "may run code"),
    "cut": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]), 3, "no whole safetensors"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), 3, "no whole safetensors"),
    "config-cut": (lambda f: (f / CONFIG).write_text('{"a": '), 3, "no JSON"),
    "config-list": (lambda f: (f / CONFIG).write_text("[1]"), 3, "holds a list"),
    "config-bytes": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), 3, "no JSON"),
    "config-deep": (lambda f: (f / CONFIG).write_text("[" * 100_000), 3, "no JSON"),
    "nan": (lambda f: weights(f, lambda s: s["conv_in.bias"].fill_(torch.nan)), 3, "conv_in.bias is not finite"),
    "key-missing": (lambda f: weights(f, lambda s: s.pop("conv_in.bias")), 3, "conv_in.bias is missing"),
    "key-odd": (lambda f: weights(f, lambda s: s.update(odd=torch.ones(1))), 3, "odd is unknown"),
    "other-shape": (lambda f: weights(f, lambda s: s.update({"conv_in.bias": torch.ones(9)})), 3, r"has shape (9,)"),
    "class": (lambda f: change(f / CONFIG, _class_name="UNet2DConditionModel"), 3, "only UNet2DModel is read"),
    "unknown-key": (lambda f: change(f / CONFIG, odd=1), 3, "unexpected keyword argument 'odd'"),
    "unknown-block": (lambda f: change(f / CONFIG, down_block_types=["A", "B"]), 3, "A does not exist"),
    "target": (lambda f: change(f / CONFIG, act_fn={"_target_": "os.system"}), 3, "not part of diffcli"),
    "interpolation": (lambda f: change(f / CONFIG, act_fn="${oc.env:HOME}"), 3, "an interpolation"),
    "fourier": (lambda f: change(f / CONFIG, time_embedding_type="fourier"), 3, "takes a noise level sigma"),
    "learned-variance": (lambda f: change(f / CONFIG, out_channels=2), 3, "a learned variance"),
    "size": (lambda f: change(f / CONFIG, sample_size="big"), 3, "no shape of images"),
    "odd-size": (lambda f: change(f / CONFIG, sample_size=9), 3, "divisible by 2"),
    "prediction": (lambda f: change(f / SCHEDULER, prediction_type="flow"), 3, "prediction_type='flow' is none of"),
    "zero-snr": (lambda f: change(f / SCHEDULER, rescale_betas_zero_snr=True), 3, "rescale_betas_zero_snr"),
    "rule": (lambda f: change(f / SCHEDULER, beta_schedule="laplace"), 3, "beta_schedule='laplace' is none of"),
    "scheduler": (lambda f: change(f / SCHEDULER, _class_name="ScoreSdeVeScheduler"), 3, "are not DDPM's"),
    "beta-too-large": (lambda f: change(f / SCHEDULER, beta_end=1.5), 3, "between 0 and 1"),
    "beta-text": (lambda f: change(f / SCHEDULER, beta_end="much"), 3, "scheduler_config.json: "),
    "no-levels": (lambda f: change(f / SCHEDULER, num_train_timesteps=0), 3, "num_train_timesteps must be"),
    "betas-count": (lambda f: change(f / SCHEDULER, trained_betas=[0.1, 0.2]), 3, "trained_betas must be 20 numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_folder_that_cannot_be_read_is_refused(cli, folder, tmp_path, case):
    spoil, code, sentence = SPOILT[case]
    spoil(folder)
    check_refused(cli, folder, tmp_path, code, sentence)


def check_refused(cli, folder, tmp_path, code, sentence, command=False):
    """By the command's own steps; and through the command line, where also nothing may be left behind."""
    with pytest.raises(DiffcliError) as caught:
        read_model(folder, {"trust": None})
    assert caught.value.exit_code == code, caught.value
    assert sentence in caught.value.message
    if command:
        before = sorted(tmp_path.rglob("*"))
        done = cli("import", f"path={folder}")
        assert done.code == code, done.err
        assert sentence in done.err
        assert "Traceback" not in done.err
        assert len(done.err.strip().splitlines()) <= 2
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("case", ["no-weights", "cut", "key-missing"])
def test_a_refused_import_says_one_sentence_and_leaves_nothing(cli, folder, tmp_path, case):
    spoil, code, sentence = SPOILT[case]
    spoil(folder)
    check_refused(cli, folder, tmp_path, code, sentence, command=True)


OWN = {
    "flipped-bit": (lambda f: flip(f / "model.safetensors", -20), 3, "is damaged"),
    "no-weights": (lambda f: (f / "model.safetensors").unlink(), 2, "has no model.safetensors"),
    "other-kind": (lambda f: change(f / "model.json", kind="x"), 3, "another format"),
    "other-format": (lambda f: change(f / "model.json", format=2), 3, "another format"),
    "no-config": (lambda f: change(f / "model.json", config={}), 3, "no model and data"),
    "no-shape": (lambda f: change(f / "model.json", shape=[0, 8]), 3, "no shape of items"),
    "code": (lambda f: node(f, "denoiser", _target_="os.system"), 3, "not part of diffcli"),
    "other-part": (lambda f: node(f, "denoiser", _target_="diffcli.cli.main"), 3, "not a model part"),
    "data-code": (lambda f: node(f, "data", _target_="builtins.print"), 3, "not part of diffcli"),
    "data-hidden": (lambda f: node(f, "data", _partial_=True), 3, "has the key '_partial_'"),
    "other-shape": (lambda f: node(f, "data", shape=[1, 4, 4]), 2, "the model takes (1, 8, 8)"),
}  # fmt: skip


def node(folder, part, **values):
    content = json.loads((folder / "model.json").read_text())
    content["config"][part] |= values
    (folder / "model.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from diffcli.interchange import own

    folder = tmp_path_factory.mktemp("exported")
    made(folder / "here.ckpt", "mlp")
    content = checkpoint.read(folder / "here.ckpt")
    own.write(folder, checkpoint.load_denoiser(folder / "here.ckpt"), content["config"], content["shape"], "ema")
    (folder / "here.ckpt").unlink()
    return folder


@pytest.mark.parametrize("case", OWN)
def test_our_own_files_are_refused_when_spoilt(cli, exported, tmp_path, case):
    folder = shutil.copytree(exported, tmp_path / "model")
    spoil, code, sentence = OWN[case]
    spoil(folder)
    check_refused(cli, folder, tmp_path, code, sentence, command=case == "code")


def test_words_that_do_not_fit_are_refused(cli, original, exported, tmp_path):
    for words, sentence in (
        (("import",), "import needs path"),
        (("import", "path="), "path= is empty"),
        (("import", "path=nowhere"), "there is no folder nowhere"),
        (("import", f"path={original}/config.json"), "is a file, not a folder"),
        (("import", f"path={exported}", f"out={exported}"), "is where the model comes from"),
        (("import", f"path={original}", "weights=ema"), "weights"),
        (("export", "ckpt=nowhere.ckpt"), "there is no checkpoint nowhere.ckpt"),
        (("export", "weights=best"), "weights cannot be 'best'"),
    ):
        done = cli(*words)
        assert done.code == 2, (words, done.err)
        assert sentence in done.err
    made(tmp_path / "here.ckpt", "mlp")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text("mine")
    done = cli("export", "ckpt=here.ckpt", "out=mine", "overwrite=true")
    assert done.code == 2
    assert "is not of an export" in done.err
    assert (tmp_path / "mine/config.json").read_text() == "mine"
    for more, code in (((), 0), ((), 2), (("overwrite=true",), 0)):
        assert cli("export", "ckpt=here.ckpt", "out=files", *more).code == code


def test_without_the_library_one_sentence_names_the_extra(cli, original, monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    for words, code in (
        (("import", f"path={original}"), 3),
        (("train", "network=diffusers_unet", "trainer.max_steps=1", "preview.every=0"), 2),
    ):
        done = cli(*words)
        assert done.code == code, done.err
        assert 'pip install "diffcli[diffusers]"' in done.err
        assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_diffusers_network_trains_and_comes_back_from_its_checkpoint(cli, tmp_path):
    words = ("network=diffusers_unet", "network.config.block_out_channels=[32,32]", "batch_size=8", "preview.every=0")
    done = cli("train", *words, "trainer.max_steps=2", "out=run")
    assert done.code == 0, done.err
    drawn = cli("sample", "ckpt=run/checkpoints/last.ckpt", "n=2", "steps=2", "out=drawn")
    assert drawn.code == 0, drawn.err
    for word, sentence in (
        ("network.config.norm_num_groups=3", "diffusers refuses this config"),
        ("network.config.attention_head_dim=64", "attention_head_dim=64 is more than"),
    ):
        refusal = cli("train", *words, word, "trainer.max_steps=1")
        assert refusal.code == 2, refusal.err
        assert sentence in refusal.err
