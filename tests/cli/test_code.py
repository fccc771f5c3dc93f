"""A user's own classes on the command line: ``--energy model.py:MyEnergy``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import MOONS, ebmcore

import ebmcore as kernel
from ebmcore.errors import UsageError

pytestmark = pytest.mark.filterwarnings("default")  # a warning is none of an error for a command

COMMON = "--sampler langevin --sampler.step_size 0.01 --data two-moons --data.n_train 200 --progress false --accelerator cpu"
NET = f"train --energy model.py:Net {COMMON} --loss cd --steps 2 --out run"

MODEL = '''
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import ebmcore
from ebm_plugin_cd.loss import ContrastiveDivergence
from ebmcore.training import BaseObserver

Path(os.environ.get("WHERE_IT_RAN", os.devnull)).touch()


class Net(torch.nn.Module):
    """A quadratic energy.

    Args:
        width: Its number of units.
    """

    def __init__(self, shape, width: int = 8):
        super().__init__()
        self.net = torch.nn.Linear(shape[0], width)

    def forward(self, x):
        return self.net(x).square().sum(-1)


class Shapeless(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(float(scale)))

    def forward(self, x):
        return self.scale * x.square().sum(-1)


class Handing(Net):
    def __init__(self, **options):
        super().__init__(**options)


class Stay(ebmcore.BaseSampler):
    def step(self, energy, state, *, generator=None):
        return state, {}


class Loss(ContrastiveDivergence):
    pass


@dataclass
class Points:
    n: int = 50

    def __post_init__(self):
        self.train = self.test = torch.ones(self.n, 2)
        self.shape, self.state_space = (2,), "continuous"


class Count:
    def __call__(self, energy, data, *, sampler, generator):
        return {"examples": float(len(data.train))}


class Watch(BaseObserver):
    def on_start(self, run):
        Path("WATCHED").touch()


def function():
    pass
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with the user's file; what it adds to Python's modules and their paths is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHERE_IT_RAN", str(tmp_path / "RAN"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    (tmp_path / "model.py").write_text(MODEL)
    yield tmp_path
    forget(before)


def forget(before=frozenset()):
    """Later commands run files again, as in a process of their own."""
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(os.getcwd()):
            del sys.modules[name]


def refused(command, capsys):
    """The one line of a command that is refused."""
    assert ebmcore(command) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    return error


def config():
    return yaml.safe_load(Path("run/config.yaml").read_text())


def test_class_of_a_file_is_trained():
    """Its options come from its constructor, the shape from the data; the configuration records its name."""
    assert ebmcore(f"{NET} --energy.width 5") == 0
    assert config()["energy"] == {"name": "model.py:Net", "width": 5}


def test_class_of_a_module_is_trained(folder):
    (folder / "package").mkdir()
    (folder / "model.py").rename(folder / "package/nets.py")
    assert ebmcore(NET.replace("model.py:Net", "package.nets:Net")) == 0
    assert config()["energy"]["name"] == "package.nets:Net"


def test_every_part_may_be_a_class_of_a_file():
    parts = "--energy model.py:Net --sampler model.py:Stay --loss model.py:Loss --data model.py:Points --data.n 30"
    more = "--metric model.py:Count --observer model.py:Watch --steps 1 --progress false --accelerator cpu --out run"
    assert ebmcore(f"train {parts} {more}") == 0
    assert json.loads(Path("run/evaluation.json").read_text())["model.py:Count"]["examples"] == 30
    assert Path("WATCHED").exists()


def test_shape_is_given_where_it_is_taken():
    assert ebmcore(NET.replace("Net", "Shapeless --energy.scale 2")) == 0
    assert config()["energy"] == {"name": "model.py:Shapeless", "scale": 2}


def test_shape_reaches_the_constructor_above():
    assert ebmcore(NET.replace("Net", "Handing --energy.width 3")) == 0


def test_option_without_a_type_is_required(capsys):
    assert "missing --energy.scale" in refused(NET.replace("Net", "Shapeless"), capsys)


def test_options_of_a_class_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        ebmcore("train --energy model.py:Net --help")
    shown = capsys.readouterr().out
    assert "--energy.width" in shown
    assert "Its number of units" in shown


WITH_DEFAULT = """
class Special(Net):
    def __init__(self, shape, {option}):
        super().__init__(shape)
        self.seen = {name}
"""


@pytest.mark.parametrize(
    "option",
    [
        "act=torch.nn.SiLU",
        "act: type[torch.nn.Module] = torch.nn.SiLU",
        "act: torch.nn.Module = torch.nn.SiLU()",
        "act=lambda x: x",
    ],
)
def test_default_that_no_file_holds(option, folder):
    """The default counts and is not written; a value that is given reaches the constructor."""
    (folder / "model.py").write_text(MODEL + WITH_DEFAULT.format(option=option, name="act"))
    special = NET.replace("Net", "Special")
    assert ebmcore(special) == 0
    assert config()["energy"] == {"name": "model.py:Special"}
    assert ebmcore(f"{special}2 --energy.act relu") == 0
    assert kernel.load_run("run2", allow_code=True).energy.seen == "relu"


def test_value_that_no_file_holds_is_refused(folder, capsys):
    (folder / "model.py").write_text(
        MODEL.replace("import os\n", "import enum\nimport os\n")
        + "Color = enum.Enum('Color', 'RED BLUE')\n"
        + WITH_DEFAULT.format(option="color: Color", name="color")
    )
    error = refused(f"{NET.replace('Net', 'Special')} --energy.color RED", capsys)
    assert "option --energy.color: no file can hold a Color: let the class take its name as a text" in error
    assert not (folder / "run").exists()


@pytest.mark.parametrize("option", ["name: str = 'default'", "name: str"])
def test_option_called_name(option, folder, capsys):
    """An option that would be called as the component keeps its default; without one, the class is refused."""
    (folder / "model.py").write_text(MODEL + WITH_DEFAULT.format(option=option, name="name"))
    special = NET.replace("Net", "Special")
    if "=" in option:
        assert ebmcore(special) == 0
        assert kernel.load_run("run", allow_code=True).energy.seen == "default"
    else:
        assert "the energy model.py:Special needs an option called name" in refused(special, capsys)


def test_required_option_of_a_metric(folder, capsys):
    """It is given after the metric's name, in a file, and for a run; without it, one line says so."""
    (folder / "model.py").write_text(
        MODEL.replace("class Count:", "class Count:\n    def __init__(self, k: int): self.k = k\n")
    )
    assert ebmcore(f"{NET} --metric model.py:Count --metric.k 3") == 0
    assert ebmcore("evaluate run --metric model.py:Count --metric.k 3 --allow-code") == 0
    (folder / "options.yaml").write_text("metric: {name: 'model.py:Count', k: 3}")
    assert ebmcore(f"{NET}2 --config options.yaml --allow-code") == 0
    capsys.readouterr()
    assert "missing --metric.k" in refused(f"{NET}3 --metric model.py:Count", capsys)


def test_files_beside_it_can_be_imported(folder):
    """By both forms of import, from any current directory."""
    (folder / "sub").mkdir()
    (folder / "sub/model.py").write_text(MODEL + "from .first import One\nfrom second import two\n")
    (folder / "sub/first.py").write_text("One = 1")
    (folder / "sub/second.py").write_text("two = 2")
    assert ebmcore(NET.replace("model.py", "sub/model.py")) == 0


def test_file_with_the_name_of_a_module(folder):
    """A file called like an imported module does not take its place."""
    (folder / "model.py").rename(folder / "json.py")
    assert ebmcore(NET.replace("model.py", "json.py")) == 0
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.py:Nett", "model.py has no class Nett; did you mean Net?"),
        ("model.py:Xyz", "model.py has no class Xyz; it has Net, Shapeless, Handing"),
        ("model.py:function", "model.py has no class function: function is of the type function"),
        ("model.py:Points", "model.py:Points is no energy: an energy must have forward()"),
        ("nothing.py:Net", "there is no file nothing.py for the energy nothing.py:Net"),
        ("nothing:Net", "there is no module nothing, neither in"),
        ("nothing.inner:Net", "there is no module nothing.inner"),
        ("syntax.py:Net", "syntax.py cannot be run: SyntaxError: invalid syntax ({folder}/syntax.py:2)"),
        ("missing.py:Net", "No module named 'not_there' ({folder}/missing.py:1)"),
        ("below.py:Net", "ZeroDivisionError: division by zero ({folder}/helper.py:3)"),
        ("torches.py:Net", "({folder}/torches.py:3)"),
        ("ends.py:Net", "ends.py cannot be run: SystemExit: 0 ({folder}/ends.py:2)"),
        ("raises:Net", "raises cannot be run: ValueError: two lines ({folder}/raises.py:1)"),
    ],
)
def test_wrong_class_is_one_line(name, message, folder, capsys):
    files = {
        "syntax": "import torch\ndef x(:\n",
        "missing": "import not_there",
        "below": "import helper",
        "helper": "\n\n1 / 0",
        "torches": "import torch\n\ntorch.zeros(2) @ torch.zeros(3)",
        "ends": "import sys\nsys.exit(0)",
        "raises": "raise ValueError('two\\nlines')",
    }
    for stem, text in files.items():
        (folder / f"{stem}.py").write_text(text)
    assert message.format(folder=folder) in refused(NET.replace("model.py:Net", name), capsys)
    assert not (folder / "run").exists()


FAILS = """
class Fails(Net):
    def __init__(self, shape):
        super().__init__(shape)
        {init}

    def forward(self, x):
        {forward}


class Fails2:
    def __call__(self, energy, data, *, sampler, generator):
        return {{}}["score"]
"""


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"init": "{}['layer']"}, "failed: KeyError: 'layer'; while making the energy 'model.py:Fails'"),
        ({"forward": "return self.nte(x)"}, "failed: AttributeError: 'Fails' object has no attribute 'nte'"),
        ({"forward": "assert x.ndim == 7"}, "failed: AssertionError"),
    ],
)
def test_failing_class_is_one_line(parts, message, folder, capsys):
    """With file and line, whatever it raises; nothing is written."""
    text = MODEL + FAILS.format(**({"init": "pass", "forward": "pass"} | parts))
    (folder / "model.py").write_text(text)
    (line,) = (number for number, code in enumerate(text.splitlines(), 1) if code.strip() == next(iter(parts.values())))
    error = refused(NET.replace("Net", "Fails"), capsys)
    assert f"ebmcore: model.py ({folder}/model.py:{line}) {message}" in error
    assert not (folder / "run").exists()


def test_failing_metric_is_one_line(folder, capsys):
    (folder / "model.py").write_text(MODEL + FAILS.format(init="pass", forward="pass"))
    assert ebmcore(NET) == 0
    capsys.readouterr()
    error = refused("evaluate run --metric model.py:Fails2 --allow-code", capsys)
    assert "failed: KeyError: 'score'; while measuring with Fails2" in error


def test_settings_of_the_process_are_put_back(folder, capsys):
    (folder / "model.py").write_text(MODEL + "torch.set_default_dtype(torch.float64)\nprint('hello')\n")
    assert ebmcore(NET) == 0
    captured = capsys.readouterr()
    assert "model.py changes the default dtype; ebmcore restored the old values" in captured.err
    assert "hello" not in captured.out


CONFIGURED = "energy: 'model.py:Net'\nloss: cd\nsteps: 2\nout: run\n"


@pytest.mark.parametrize("part", ["data", "energy", "sampler", "loss", "metric", "observer"])
def test_code_of_a_configuration_is_refused(part, folder, capsys):
    """The message says what would be run, and nothing is."""
    (folder / "options.yaml").write_text(f"{part}: 'model.py:Net'")
    others = {"data": "two-moons", "energy": "mlp", "sampler": "langevin", "loss": "cd"}
    rest = " ".join(f"--{name} {value}" for name, value in others.items() if name != part)
    error = refused(f"train --config options.yaml {rest} --out run", capsys)
    assert f"model.py:Net, for which the file {folder}/model.py would be run: add --allow-code" in error
    assert not (folder / "RAN").exists()


def test_module_of_a_configuration_is_refused(folder, capsys):
    (folder / "options.yaml").write_text(CONFIGURED.replace("model.py", "model"))
    assert "the module model would be run" in refused(f"train --config options.yaml {COMMON}", capsys)
    assert not (folder / "RAN").exists()


def test_allowed_code_of_a_configuration_is_run(folder):
    (folder / "options.yaml").write_text(CONFIGURED)
    assert ebmcore(f"train --config options.yaml {COMMON} --allow-code") == 0


def test_name_on_the_command_line_replaces_that_of_a_file(folder):
    """What is replaced is not run, so it needs no leave."""
    (folder / "options.yaml").write_text(CONFIGURED.replace("model.py", "other.py"))
    assert ebmcore(f"train --config options.yaml --energy model.py:Net {COMMON}") == 0


def test_leave_is_not_given_by_a_file(folder, capsys):
    for spelling in ("allow-code", "allow_code"):
        (folder / "options.yaml").write_text(f"{CONFIGURED}{spelling}: true\n")
        refused(f"train --config options.yaml {COMMON}", capsys)
    assert not (folder / "RAN").exists()


def test_code_of_a_recipe_is_refused(folder, capsys):
    (folder / "strange").mkdir()
    (folder / "strange/recipe.yaml").write_text(CONFIGURED)
    (folder / "strange/__init__.py").touch()
    sys.path.insert(0, str(folder))

    class Plugin:
        @kernel.hookimpl
        def ebmcore_register(self, register):
            register.recipe("strange", "strange:recipe.yaml")

    with kernel.temporary_plugin(Plugin()):
        assert "add --allow-code" in refused(f"train --recipe strange {COMMON}", capsys)
        assert not (folder / "RAN").exists()
        assert ebmcore(f"train --recipe strange {COMMON} --allow-code") == 0


ROADS = {
    "resume": "train --resume run --steps 3",
    "evaluate": "evaluate run --metric grid-ll",
    "sample": "sample run --out a.npy -n 2 --steps 1",
}


@pytest.mark.parametrize("road", ROADS.values(), ids=ROADS)
def test_code_of_a_run_needs_leave(road, folder, capsys):
    assert ebmcore(NET) == 0
    forget()
    (folder / "RAN").unlink()
    assert "add --allow-code" in refused(road, capsys)
    assert not (folder / "RAN").exists()
    assert ebmcore(f"{road} --allow-code") == 0
    assert (folder / "RAN").exists()


def test_named_class_of_a_resumed_run_needs_no_leave():
    assert ebmcore(NET) == 0
    assert ebmcore("train --resume run --steps 3 --energy model.py:Net") == 0
    assert ebmcore(f"{NET.replace('--steps 2', '--steps 4')} --resume auto") == 0


def test_changed_file_is_a_warning(folder, capsys):
    assert ebmcore(NET) == 0
    (folder / "model.py").write_text(f"{MODEL}# changed\n")
    forget()
    assert ebmcore("train --resume run --steps 3 --allow-code") == 0
    text = "step-00000002 was written with another version of the file of model.py:Net: results may differ"
    assert text in capsys.readouterr().err
    assert ebmcore("train --resume run --steps 4 --allow-code") == 0
    assert "another version" not in capsys.readouterr().err


def test_other_class_is_another_run(capsys):
    assert ebmcore(NET) == 0
    path = Path("run/config.yaml")
    path.write_text(path.read_text().replace("model.py:Net", "model.py:Handing"))
    error = refused("train --resume run --steps 3 --allow-code", capsys)
    assert "was written with the energy model.py:Net, not with model.py:Handing" in error


def test_run_finds_its_file_in_another_folder(folder):
    """A checkpoint holds the file's name without its folder, and no path of the machine."""
    assert ebmcore(NET.replace("model.py", str(folder / "model.py"))) == 0
    assert str(folder) not in next(folder.glob("run/checkpoints/*/checkpoint.json")).read_text().replace(
        str(config()["energy"]["name"]), ""
    )
    (folder / "elsewhere").mkdir()
    (folder / "model.py").rename(folder / "elsewhere/model.py")
    path = Path("run/config.yaml")
    path.write_text(path.read_text().replace(str(folder / "model.py"), "elsewhere/model.py"))
    forget()
    assert ebmcore("train --resume run --steps 3 --allow-code") == 0


COPIED = {
    "sample": "sample run -n 2 --steps 1 --out a.npy",
    "score": "score run x.npy --out a.csv",
    "export": "export run --out a.pt",
    "resume": "train --resume run --steps 3",
}


@pytest.mark.parametrize("road", COPIED.values(), ids=COPIED)
def test_run_without_its_file_has_a_copy(road, folder, monkeypatch, capsys):
    """In another folder, as on another machine; the copy needs leave, too."""
    assert ebmcore(NET) == 0
    (folder / "elsewhere").mkdir()
    (folder / "run").rename(folder / "elsewhere/run")
    (folder / "model.py").unlink()
    monkeypatch.chdir(folder / "elsewhere")
    np.save("x.npy", np.zeros((2, 2), dtype=np.float32))
    forget()
    error = refused(road, capsys)
    assert f"the file {folder}/elsewhere/run/code/energy/model.py would be run: add --allow-code" in error
    assert ebmcore(f"{road} --allow-code") == 0
    assert "another version" not in capsys.readouterr().err


def test_card_of_an_own_class_shows_its_use(folder, capsys):
    """Its lines load the weights; ``from_pretrained`` runs no code, and says where they are."""
    file = folder / "model.py"
    assert ebmcore(f"{NET.replace('model.py', str(file))} --energy.width 5 --metric {file}:Count") == 0
    assert ebmcore("export run --out a/model --allow-code") == 0
    with pytest.raises(UsageError, match=r"class model.py:Net of who trained it, .* as a.model.README.md shows"):
        kernel.from_pretrained("a/model")
    card = Path("a/model/README.md").read_text()
    lines = card.partition("```python\n")[2].partition("log_density")[0]
    made = {}
    exec(lines.replace("DIRECTORY", "a/model"), made)
    expected = kernel.load_run("run", allow_code=True).energy
    assert made["energy"].net.weight.equal(expected.net.weight)
    assert str(folder) not in card


def test_file_at_its_place_comes_before_the_copy(folder, capsys):
    assert ebmcore(NET) == 0
    (folder / "model.py").write_text(MODEL.replace("self.net(x).square()", "2 * self.net(x).square()"))
    forget()
    assert ebmcore("export run --out a.pt --allow-code") == 0
    assert "another version of the file" in capsys.readouterr().err


def test_copy_is_that_of_the_last_training(folder, capsys):
    assert ebmcore(NET) == 0
    assert (folder / "run/code/energy/model.py").read_text() == MODEL
    (folder / "model.py").write_text(f"{MODEL}# changed\n")
    forget()
    assert ebmcore("train --resume run --steps 3 --allow-code") == 0
    assert (folder / "run/code/energy/model.py").read_text() == f"{MODEL}# changed\n"


OPEN = """
import torch


class Open(torch.nn.Module):
    def __init__(self, shape, width=2, **options):
        super().__init__()
        self.options = options
        self.scale = torch.nn.Parameter(torch.tensor(float(options["scale"])))

    def forward(self, x):
        return self.scale.abs() * x.square().sum(-1)
"""


def test_further_options_reach_the_class(folder, capsys):
    """Those of ``**options``, from the command line and from a file, with the types that YAML gives them."""
    (folder / "open.py").write_text(OPEN)
    (folder / "options.yaml").write_text("energy: {name: 'open.py:Open', kind: deep}")
    command = f"train --config options.yaml --energy open.py:Open {COMMON} --loss cd --steps 1 --out run"
    given = "--energy.width 3 --energy.scale 2.5 --energy.sizes=[1,2] --energy.flag true"
    assert ebmcore(f"{command} {given}") == 0
    assert config()["energy"] == {
        "name": "open.py:Open", "width": 3, "kind": "deep", "scale": 2.5, "sizes": [1, 2], "flag": True
    }  # fmt: skip
    assert kernel.load_run("run", allow_code=True).energy.options["sizes"] == [1, 2]
    assert ebmcore("train --resume run --steps 2 --allow-code") == 0
    assert "option --energy.scale needs a value" in refused(f"{command} --energy.scale --energy.width 2", capsys)
    assert "unknown option --energy.widht" in refused(f"{NET} --energy.widht 2", capsys)


@pytest.mark.parametrize("launcher", [[], ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]])
def test_class_of_a_file_on_two_processes(launcher, folder):
    """Each process runs the file, whoever starts it."""
    command = [sys.executable, "-m", *launcher, "ebmcore", *NET.split(), *([] if launcher else ["--devices", "2"])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trained 2 steps; run holds the results\n"


def test_id_of_a_plugin_is_no_code(capsys):
    assert ebmcore(f"train {MOONS} --loss ebm-plugin-cd:cd --steps 1 --out run") == 0
    assert "pip install" not in refused(f"train {MOONS} --loss my-own:cd --steps 1 --out new", capsys)
