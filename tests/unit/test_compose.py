"""compose.yaml and the Dockerfile say only what exists: no container engine is needed to know."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from console.program import app
from outbox.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
IMAGE_PROGRAMS = {"postgres": {"pg_isready"}, "redis": {"redis-server", "redis-cli"}}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def commands() -> list[tuple[str, list[str]]]:
    """Every command in the file, health checks too, with its service."""
    found = [(name, service["command"]) for name, service in SERVICES.items() if "command" in service]
    for name, service in SERVICES.items():
        if "healthcheck" in service:
            kind, *command = service["healthcheck"]["test"]
            assert kind == "CMD"
            found.append((name, command))
    return found


def parse(arguments: list[str]) -> dict[str, Any]:
    """What our command line makes of the arguments; raises when it refuses them."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("outbox", list(arguments))
    name, command, rest = group.resolve_command(context, list(arguments))
    parameters: dict[str, Any] = command.make_context(name, rest, parent=context).params
    return parameters


@pytest.mark.parametrize(("service", "command"), commands(), ids=lambda part: part if isinstance(part, str) else None)
def test_every_command_exists_and_takes_its_flags(service: str, command: list[str]) -> None:
    program, *arguments = command
    if program == "outbox":
        parse(arguments)
    elif program == "python":
        compile(arguments[1], "<healthcheck>", "exec")
        path = arguments[1].rpartition(":8000")[2].partition("'")[0]
        assert f'@app.get("{path}")' in (ROOT / "examples/shop/api.py").read_text()
    elif program == "uvicorn":
        assert "uvicorn" in DOCKERFILE
        assert defines(arguments[0])
    else:
        assert program in IMAGE_PROGRAMS[service]


def test_an_unknown_flag_would_be_noticed() -> None:
    for wrong in (["relay", "--verbose"], ["status", "--check", "moon"], ["sing"]):
        with pytest.raises(Exception, match=r"No such|not one of|Invalid value"):
            parse(wrong)


def defines(target: str) -> bool:
    """Whether the examples have what MODULE:NAME says."""
    module, name = target.split(":")
    source = ROOT / "examples" / Path(*module.split(".")).with_suffix(".py")
    assigned = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.Assign)]
    return any(isinstance(t, ast.Name) and t.id == name for node in assigned for t in node.targets)


def test_the_worker_runs_an_application_that_exists() -> None:
    assert defines(parse(SERVICES["worker"]["command"][1:])["target"])


def test_every_setting_is_one_of_ours() -> None:
    ours = {f"OUTBOX_{name.upper()}" for name in Settings.model_fields} - {"OUTBOX_SCHEMA_NAME"} | {"OUTBOX_SCHEMA"}
    for name, service in SERVICES.items():
        given = {variable for variable in service.get("environment", {}) if variable.startswith("OUTBOX_")}
        assert given <= ours, f"{name}: {given - ours}"
    assert "OUTBOX_DATABASE_URL" in SERVICES["relay"]["environment"]


def test_the_promised_parts_are_there_with_health_checks() -> None:
    assert {"postgres", "redis", "migrate", "api", "relay", "worker"} <= SERVICES.keys()
    assert SERVICES["worker"]["deploy"]["replicas"] == 2
    assert "--appendonly yes" in " ".join(SERVICES["redis"]["command"])
    assert all("healthcheck" in service for name, service in SERVICES.items() if name != "migrate")


def test_services_wait_for_what_exists_and_can_become_healthy() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES
            assert how["condition"] != "service_healthy" or "healthcheck" in SERVICES[other]


def test_the_image_is_built_from_files_and_extras_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source
    extras = re.search(r"\.\[([a-z,]+)\]", DOCKERFILE)
    assert extras is not None
    assert set(extras[1].split(",")) <= project["optional-dependencies"].keys()


def test_everything_the_wheel_is_made_of_is_there_when_the_image_builds_it() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = configuration["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], configuration["project"]["readme"], "pyproject.toml"}
    before = DOCKERFILE.partition("RUN pip install")[0]
    copied = [source for line in re.findall(r"^COPY (.+)$", before, re.MULTILINE) for source in line.split()[:-1]]
    for path in needed:
        assert any(Path(path).is_relative_to(source) for source in copied), path
