"""The endpoint's configuration, and what follows from it for replicas and their gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import InputError, load
from trimtab.engine import VLLMEngine
from trimtab.policy import keys
from trimtab.safety import PRESETS
from trimtab.serving import ServeConfig, ServedModel, throwaway_key
from trimtab.serving.apps import _version, gate_settings, make_gating
from trimtab.serving.config import is_loopback, refuse_open_host
from trimtab.serving.running import refuse_unusable_files


def test_replicas_are_fixed_unless_a_larger_number_is_given() -> None:
    assert ServeConfig().most_replicas == 1
    assert ServeConfig(min_replicas=3).most_replicas == 3
    assert ServeConfig(min_replicas=0).most_replicas == 1
    assert ServeConfig(min_replicas=1, max_replicas=4).most_replicas == 4


@pytest.mark.parametrize("overrides", [["min_replicas=3", "max_replicas=2"], ["others=[{name: trimtab}]"]])
def test_what_contradicts_itself_is_one_clear_line(overrides: list[str]) -> None:
    with pytest.raises(InputError, match=r"max_replicas 2 is less|two models have one name"):
        load(ServeConfig, None, overrides)


def test_without_keys_only_loopback_is_listened_on() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", ""):
        with pytest.raises(InputError, match="without keys listens on loopback only"):
            refuse_open_host(host)


def test_gate_learns_from_the_engine_what_it_can_take() -> None:
    served = ServedModel(adapters={"pirate": Path("a")}, engine=VLLMEngine(max_model_len=512))
    settings = gate_settings(ServeConfig().gate, served)
    assert (settings.context_tokens, settings.keep_seed, settings.adapters) == (512, False, ("pirate",))
    assert gate_settings(ServeConfig().gate, ServedModel(engine=VLLMEngine(accelerators=1))).keep_seed


def test_presets_alone_start_no_replica_anew(tmp_path: Path) -> None:
    def version(config: ServeConfig) -> str:
        return _version(config, config, make_gating(config, config, tmp_path))

    before = version(ServeConfig())
    assert version(ServeConfig(presets=tmp_path / "presets.yaml")) == before
    assert version(ServeConfig(max_ongoing_requests=7)) != before
    assert version(ServeConfig(engine=VLLMEngine(max_model_len=512))) != before
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert version(ServeConfig()) != before


def test_a_models_record_travels_with_its_gate(tmp_path: Path) -> None:
    assert make_gating(ServeConfig(), ServeConfig(), tmp_path).learned is None
    record = {"configurations": [{"name": "harmless", "system": PRESETS["harmless"].system}]}
    (tmp_path / "trimtab.json").write_text(json.dumps(record), encoding="utf-8")
    assert make_gating(ServeConfig(), ServeConfig(), tmp_path).learned == tuple(record["configurations"])


def test_throwaway_key_opens_everything_and_is_gone_at_the_end() -> None:
    from trimtab.policy.keys import KeyFile

    with throwaway_key(ServeConfig(throwaway_key=True)) as (config, secret):
        assert config.keys is not None
        assert config.keys.stat().st_mode & 0o777 == 0o600
        key = KeyFile(config.keys).find(f"Bearer {secret}".encode())
        assert all(key.allows(preset) for preset in PRESETS)
        assert secret not in config.dump_yaml()
    assert not config.keys.exists()


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("keys", {"keys": "FOLDER/none.json"}),
        ("keys", {"keys": "FOLDER/open.json"}),
        ("keys", {"keys": "FOLDER/bad.json"}),
        ("presets", {"presets": "FOLDER/none.yaml"}),
        ("audit", {"audit": "FOLDER/bad.json/audit.jsonl"}),
        ("budgets", {"budgets": "FOLDER/bad.json/budgets.json"}),
        ("adapters.pirate", {"adapters": {"pirate": "FOLDER"}}),
    ],
)
def test_files_that_no_replica_could_use_are_refused_before_one_starts(
    tmp_path: Path, field: str, values: dict[str, Any]
) -> None:
    (tmp_path / "bad.json").write_text('{"keys": [{"id": "a"}]}', encoding="utf-8")
    (tmp_path / "bad.json").chmod(0o600)
    (tmp_path / "open.json").write_text('{"keys": []}', encoding="utf-8")
    (tmp_path / "open.json").chmod(0o644)
    config = ServeConfig.model_validate(json.loads(json.dumps(values).replace("FOLDER", str(tmp_path))))
    with pytest.raises(InputError) as caught:
        refuse_unusable_files(config)
    assert str(caught.value).startswith(f"{field}: {tmp_path}")
    assert "\n" not in str(caught.value)


def test_files_that_can_be_used_pass_and_leave_no_file_but_the_log(tmp_path: Path) -> None:
    keys.create(tmp_path / "keys.json", keys.Grant())
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    refuse_unusable_files(ServeConfig(
        keys=tmp_path / "keys.json", audit=tmp_path / "a" / "audit.jsonl", budgets=tmp_path / "b" / "budgets.json",
        adapters={"pirate": tmp_path},
    ))  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["audit.jsonl"]
    assert list((tmp_path / "b").iterdir()) == []
