"""What the program says of itself: help in 80 columns, completion in a shell, the table of teachers."""

import json
import re

import processes
import pytest
from program import SCRIPT, call, run_program

import shazam_fast as sf
from shazam_fast.cli import app
from shazam_fast.cli.comparison import STUDIES

COMMANDS = [command.__name__.replace("_", "-") for command in app.COMMANDS]
FEATURE_OPTIONS = ("labels", "splits", "groups", "label-column", "classes", "teacher", "slides", "on-error", "val",
                   "test", "seed")  # fmt: skip


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_cuts_nothing(command):
    text = call(*filter(None, [command]), "--help", width=80).stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.replace("[ARGS]...", "").replace("STAMP, ...", "")
    assert "\u2026" not in text


def test_every_command_is_explained_in_a_line():
    lines = call("--help", width=80).stdout.partition("Commands:")[2].splitlines()
    for command in COMMANDS:
        (line,) = (line for line in lines if line.startswith(f"  {command} "))
        assert line.endswith("."), line


@pytest.mark.parametrize("command", ["inspect", "verify", "convert", "train", "evaluate", "score", "compare", "report"])
def test_every_command_that_opens_features_says_how(command):
    text = call(command, "--help").stdout
    assert all(f"--{option} " in text for option in FEATURE_OPTIONS)


def completed(line):
    """What bash is offered behind a line."""
    given = line.split(" ")
    environment = {"COMP_WORDS": line, "COMP_CWORD": str(len(given) - 1), "_SHAZAM_FAST_COMPLETE": "complete_bash"}
    run = processes.run(f"import sys; sys.argv = ['shazam-fast']; {SCRIPT}", **environment)
    assert "Traceback" not in run.stderr
    return run.stdout.split()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("shazam-fast insp", ["inspect"]),
        ("shazam-fast train --feature-d", ["--feature-dropout"]),
        ("shazam-fast train --preset auth", ["authors_script", "authors_levels"]),
        ("shazam-fast train --huber ", ["norm", "elementwise"]),
        ("shazam-fast extract --teacher virchow2", ["virchow2", "virchow2-cls"]),
        ("shazam-fast teachers giga", ["gigapath"]),
        ("shazam-fast evaluate student archive --split t", ["train", "test"]),
        ("shazam-fast compare --study l", [name for name in STUDIES if name.startswith("l")]),
    ],
)
def test_a_shell_completes_commands_options_and_values(line, wanted):
    assert completed(line) == wanted


def test_the_script_for_bash_is_printed():
    run = processes.run(f"import sys; sys.argv = ['shazam-fast', '--show-completion', 'bash']; {SCRIPT}")
    assert "complete -o default -F" in run.stdout, run.stderr


def test_the_studies_are_those_of_the_comparison():
    from shazam_fast.comparison import studies

    assert tuple(studies.STUDIES) == STUDIES


def test_the_table_of_teachers_fits_80_columns():
    printed = call("teachers", width=80).stdout
    assert max(map(len, printed.splitlines())) <= 80
    lines = {line.split()[0]: line for line in printed.splitlines() if line.split()}
    assert all(spec.name in lines for spec in sf.list_teachers())
    assert "2,560" in lines["virchow2"]
    assert "1,280" in lines["virchow2-cls"]
    assert "224 of 256" in lines["gigapath"]
    assert "*" in lines["uni"]
    assert "*" not in lines["gigapath"]
    assert "\u2026" not in printed


def test_teachers_for_programs():
    found = json.loads(call("teachers", "--json").stdout)
    assert [about["name"] for about in found] == [spec.name for spec in sf.list_teachers()]
    one = json.loads(run_program("teachers", "gigapath", "--json").stdout)
    assert one == next(about for about in found if about["name"] == "gigapath")
    spec = sf.get_teacher("gigapath")
    assert (one["dim"], one["gated"], one["licence"]) == (spec.dim, spec.gated, spec.licence)
    assert one["transform"]["resize"] == spec.transform.resize


def test_one_teacher():
    run = call("teachers", "uni2")
    assert re.search(r"weights +MahmoodLab/UNI2-h \(gated", run.stdout)
    assert re.search(r"feature +1,536 columns, pooling cls", run.stdout)
    for option in ((), ("--json",)):
        run = call("teachers", "unni", *option)
        assert run.returncode == 1
        assert "did you mean uni" in run.stderr
