"""params.yaml: what is refused and what is said then, that it is read as DVC reads it, and once a command."""

import re
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml
from project import ROOT, tiny, write_params

from conr.errors import UserError
from conr.parameters import Parameters
from conr.parameters.groups import Group
from conr.parameters.keys import RENAMED, leaves, lookup
from conr.pipeline import params_file
from conr.stages import cli

KEYS = [".".join(key) for key, _ in leaves(Parameters)]
GROUPS = [name for name in Parameters.model_fields if name not in KEYS]


def refused(folder: Path) -> str:
    """What is said of the folder's params.yaml, on one line."""
    with pytest.raises(UserError) as error:
        params_file.read(folder / "params.yaml")
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kk1": 3}, "unknown key kk1; did you mean k1?"),
        ({"finetune.epoch": 3}, "unknown key finetune.epoch; did you mean finetune.epochs?"),
        ({"k": "ten"}, "k = 'ten' should be a valid integer"),
        ({"k": 2.5}, "k = 2.5 should be a valid integer"),
        ({"k": True}, "k = True should be a valid integer"),
        ({"fr": 0}, "fr = 0 should be greater than 0"),
        ({"fr": 1.01}, "fr = 1.01 should be less than or equal to 1"),
        ({"prepare.source": "digit"}, "prepare.source = 'digit' should be 'digits', 'folder', 'cifar10'"),
        (
            {"prepare.path": "~/photos"},
            f"prepare.path = '~/photos' should be {Path.home()}/photos: DVC does not know ~",
        ),
        ({"prepare.path": "~nobody-here"}, "prepare.path = '~nobody-here' should be ./~nobody-here"),
        ({"network.stem": None}, "network.stem = None should be 'cifar' or 'imagenet'"),
        ({"views": 3}, "views = 3 should be"),
        (
            {"framework.name": "dino"},
            "framework.name = 'dino' should be 'barlow-twins', 'byol', 'moco' or 'simsiam'",
        ),
        ({"extract.precision": "int4"}, "extract.precision = 'int4' should be 'float32' or 'int8'"),
        ({"seeds": [3, 4, 3]}, "seeds = [3, 4, 3] names a seed twice"),
        ({"seeds": [3, -1]}, "seeds.1 = -1 should be greater than or equal to 0"),
        ({"seeds": 3}, "seeds = 3 should be a valid list"),
    ],
)
def test_impossible_values_are_named_with_what_would_be_right(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_params(tmp_path, changes)
    said = refused(tmp_path)
    assert said.startswith(f"{tmp_path}/params.yaml: ")
    assert message in said
    assert "\n" not in said


def test_a_missing_key_is_named_with_its_default(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    assert "\nfr: 0.8\n" in text
    (project / "params.yaml").write_text(text.replace("\nfr: 0.8\n", "\n"))
    assert refused(project) == f"{project}/params.yaml lacks the key fr; add it (default: 0.8)"


def test_a_missing_file_says_where_to_get_one(tmp_path: Path) -> None:
    said = refused(tmp_path)
    assert said.startswith(f"there is no params.yaml in {tmp_path}; ")
    assert "conr preset digits" in said
    assert "conr new" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("k: [1,", " in line 1: expected the node content, but found '<stream end>'"),
        ("seed: 0\n\tk: 1\n", " in line 2: found character '\\t' that cannot start any token"),
        ("seed: 0\nk: 1\nk: 2\n", ' in line 3: found duplicate key "k" with value "2" (original value: "1")'),
        ("seed: \0", ": unacceptable character #x0000: special characters are not allowed"),
    ],
)
def test_a_file_that_is_no_yaml_is_named_on_one_line_with_the_problem(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "params.yaml").write_text(content)
    said = refused(tmp_path)
    assert said.startswith(f"{tmp_path}/params.yaml is not valid YAML{message}")
    assert "\n" not in said


@pytest.mark.parametrize("content", ["", "- k\n", "k1\n"])
def test_a_file_without_keys_and_values_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "params.yaml").write_text(content)
    assert refused(tmp_path) == f"{tmp_path}/params.yaml must hold keys and values"


def test_a_file_that_is_not_in_utf_8_is_named_with_the_line_and_the_byte(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes("seed: 0\n# für alle\n".encode("latin-1"))
    message = "params.yaml is not in UTF-8: line 2, byte 11 of the file is 0xfc; save it in UTF-8"
    assert message in refused(tmp_path)


def renamed_leaves() -> dict[str, str]:
    """Old key → new key, for every key that was renamed itself or is in a group that was, by the old group's name."""
    found = {}
    groups = {old: new for old, new in RENAMED.items() if "." not in old}
    for old, new in RENAMED.items():
        if "." in old:
            found[old] = new
            found |= {f"{was}.{old.partition('.')[2]}": new for was, now in groups.items() if old.startswith(f"{now}.")}
    for was, now in groups.items():
        for key in KEYS:
            if key.startswith(f"{now}."):
                found.setdefault(f"{was}.{key.partition('.')[2]}", key)
    return found


def test_old_keys_have_become_keys_that_are_declared() -> None:
    assert not RENAMED.keys() & {*KEYS, *GROUPS}
    assert set(RENAMED.values()) <= {*KEYS, *GROUPS}
    assert {"host.framework", "host.queue", "optimiser.momentum", "neighbourhood.neighbours"} <= renamed_leaves().keys()


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_in_the_file_is_named_with_its_new_name(tmp_path: Path, old: str) -> None:
    write_params(tmp_path, {old: {} if RENAMED[old] in GROUPS else 1})
    named = old.partition(".")[0] if old.partition(".")[0] in RENAMED else old  # of an old group all is wrong
    assert f"the key {named} is called {RENAMED[named]} now; rename it" in refused(tmp_path)


def test_a_file_from_before_names_all_its_old_keys_at_once(tmp_path: Path) -> None:
    write_params(tmp_path, {old: {} if new in GROUPS else 1 for old, new in RENAMED.items() if "host." not in old})
    said = refused(tmp_path)
    for old, new in RENAMED.items():
        if not old.startswith("host."):
            assert f"the key {old} is called {new} now" in said


def test_old_keys_in_groups_with_old_names_are_named_at_once(tmp_path: Path) -> None:
    write_params(tmp_path, {"neighbourhood.neighbours": "local", "host.framework": "moco", "host.queue": 8})
    said = refused(tmp_path)
    assert "the key neighbourhood.neighbours is called neighborhood.neighbors now" in said
    assert "the key host.framework is called framework.name now" in said
    assert "queue" not in said


@pytest.mark.parametrize(("old", "new"), renamed_leaves().items())
def test_an_old_key_on_the_command_line_is_named_with_its_new_name(old: str, new: str) -> None:
    with pytest.raises(UserError, match=f"^--set {re.escape(old)}=1: the key {old} is called {new} now; rename it$"):
        params_file.assignments([f"{old}=1"])
    with pytest.raises(UserError, match=r"is called .* now"):
        tiny().changed({old: 1})


def test_values_on_the_command_line_are_yaml() -> None:
    texts = ["boundary.filter=none", "seeds=[3, 4]", "fr=1e-1", "network.width=16", "prepare.download=true"]
    assert params_file.assignments(texts) == {
        "boundary.filter": "none",
        "seeds": [3, 4],
        "fr": 0.1,
        "network.width": 16,
        "prepare.download": True,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pretrain.epoch=3", "--set pretrain.epoch=3: unknown key pretrain.epoch; did you mean pretrain.epochs?"),
        ("k1", "--set k1 should be KEY=VALUE"),
        ("k1=[1", "--set k1=[1: [1 is not valid YAML"),
        ("pretrain=3", "unknown key pretrain"),
    ],
)
def test_settings_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}" if message.startswith("--") else message):
        params_file.assignments([text])


@pytest.mark.parametrize(
    "value",
    ["1e-3", "1E-3", ".5", "0.5", "1_0", "010", "0o10", "0x10", "1:30", "12", "+12", "yes", "on", "true", "~", "'12'"],
)
@pytest.mark.parametrize("key", ["optimizer.weight_decay", "k", "prepare.download"])
def test_values_are_read_as_dvc_reads_them(project: Path, key: str, value: str) -> None:
    """Else a stage would compute with another value than the one that DVC tracks and shows."""
    path = project / "params.yaml"
    name = key.rpartition(".")[2]
    path.write_text(re.sub(rf"(?m)^( *){name}: .*$", rf"\g<1>{name}: {value}", path.read_text()))
    path_of_keys = tuple(key.split("."))
    read_by_dvc, said = lookup(load_yaml(path), path_of_keys), ""
    try:
        read = lookup(params_file.read(path).model_dump(), path_of_keys)
    except UserError as error:
        said = str(error)
    if said:
        assert f"{key} = {read_by_dvc!r} should be" in said
    else:
        assert read == read_by_dvc
        assert isinstance(read, bool) == isinstance(read_by_dvc, bool)  # which equals 0 or 1


def test_numbers_in_scientific_notation_are_numbers(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    assert "weight_decay: 0.0005" in text
    (project / "params.yaml").write_text(text.replace("weight_decay: 0.0005", "weight_decay: 5e-4"))
    assert params_file.read(project / "params.yaml").optimizer.weight_decay == 0.0005


@pytest.mark.parametrize("text", ["k1: 20\nk1: 21\n", "views: {flip: 0.0, flip: 0.5}\n"])
def test_a_key_that_is_there_twice_is_refused_as_dvc_refuses_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(YAMLFileCorruptedError):
        load_yaml(tmp_path / "params.yaml")
    assert "params.yaml is not valid YAML" in refused(tmp_path)


@pytest.mark.parametrize("command", [*cli.STAGES, "ablate", "estimate"])
def test_a_command_reads_the_file_once(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes meanwhile must not be half of one run's and half of another's."""
    parameters, reads, started = tiny(), [], []

    def read(path: Path = Path(params_file.NAME)) -> Parameters:
        reads.append(path)
        return parameters

    monkeypatch.setattr(params_file, "read", read)
    monkeypatch.setattr(cli, "run", lambda name, *_: started.append(name))
    cli.app([command], standalone_mode=False)
    assert (started, reads) == ([command], [Path("params.yaml")])


def test_the_file_of_the_repository_can_be_read() -> None:
    assert isinstance(params_file.read(ROOT / "params.yaml"), Group)
