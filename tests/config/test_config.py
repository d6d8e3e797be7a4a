"""Settings: every one from every source, precedence, refusals that tell what to do, and the rules across settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from worker.config import Settings, load
from worker.config.schema import RENAMED, Given, Setting, flag, schema, variable
from worker.config.settings import EXLLAMAV2_ALONE, GROUPS, is_loopback
from worker.errors import ConfigError

KEY = "sixteen-or-more-characters"
SETTINGS = list(schema().values())
TEXTS = inspect.StrType | inspect.UnionType | inspect.VarTupleType
NO_TEXTS = [setting for setting in SETTINGS if not isinstance(setting.type, TEXTS)]
# What a setting needs beside it, so that the rules across settings hold for any value of it.
COMPANIONS = {
    "host": {"api_key": KEY},
    "max_tokens_default": {"max_tokens_max": 1 << 24},
    "max_tokens_max": {"max_tokens_default": 1},
    "engine_restart_backoff_s": {"engine_restart_backoff_max_s": 3600.0},
    "engine_restart_backoff_max_s": {"engine_restart_backoff_s": 0.0},
    **{name: {"engine": "exllamav2"} for name in EXLLAMAV2_ALONE},
}
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=",\\\"'"), min_size=1)


def values(setting: Setting) -> st.SearchStrategy[Any]:
    """Values that `setting` allows, the defaults of optional texts left out."""
    match setting.type:
        case inspect.IntType(ge=low, le=high):
            return st.integers(low, high)
        case inspect.FloatType(ge=low, gt=above, le=high):
            floor = above if low is None else low
            return st.floats(floor, high, exclude_min=low is None)
        case inspect.BoolType():
            return st.just(True)
        case inspect.LiteralType(values=options):
            return st.sampled_from(sorted(str(option) for option in options))
        case _ if setting.name == "origins_allowed":
            return st.lists(st.from_regex(r"https?://[a-z.-]+(:[0-9]{1,5})?", fullmatch=True), min_size=1).map(tuple)
        case _ if setting.name == "proxies_trusted":
            return st.lists(st.ip_addresses().map(str), min_size=1).map(tuple)
        case _ if setting.name == "path_prefix":
            return st.from_regex(r"(/x[A-Za-z0-9._~-]{0,9}){1,9}/?", fullmatch=True)
        case inspect.VarTupleType():
            return st.lists(WORDS, min_size=1).map(tuple)
        case _ if setting.name in ("queen_url", "otel_endpoint"):
            return WORDS.map(lambda word: f"http://{word}")
        case _:
            return WORDS


def samples(setting: Setting) -> list[Any]:
    """The limits of `setting`, or a few values for one without."""
    match setting.type:
        case inspect.IntType(ge=low, le=high):
            return [low, high]
        case inspect.FloatType(ge=low, le=high):
            return [0.25, high] if low is None else [low, high]
        case inspect.BoolType():
            return [True]
        case inspect.LiteralType(values=options):
            return list(options)
        case _ if setting.name == "origins_allowed":
            return [("https://a.example",), ("http://b.example:8080", "app://[::1]:1")]
        case _ if setting.name == "proxies_trusted":
            return [("10.0.0.1",), ("10.0.0.0/8", "fe80::/10")]
        case _ if setting.name == "path_prefix":
            return ["/llm", "/llm/", "/a/b.c_~-1"]
        case inspect.VarTupleType():
            return [("a.example",), ("a.example", "b.example:8080")]
        case _ if setting.name in ("queen_url", "otel_endpoint"):
            return ["http://127.0.0.1:7833", "https://queen.example/base"]
        case _ if setting.name == "gpu_split":
            return ["auto", "20", "20,24.5"]
        case _:
            return ["some/path.gguf", "127.0.0.1"]


def as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return "true" if value is True else str(value)


def as_flags(values: dict[str, Any]) -> list[str]:
    return [
        schema()[name].flag if value is True else f"{schema()[name].flag}={as_text(value)}"
        for name, value in values.items()
    ]


def as_variables(values: dict[str, Any]) -> dict[str, str]:
    return {schema()[name].variable: as_text(value) for name, value in values.items()}


def as_toml(values: dict[str, Any]) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "jobwire.toml"


def refusal(argv: list[str], environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(argv, environ or {})
    return caught.value.detail


# ---- every setting, from every source --------------------------------------------------------------------------------


def test_without_any_source_all_defaults_hold() -> None:
    assert load([], {"PATH": "/bin", "HOME": "/root"}) == Settings()


def check_all_sources_agree(chosen: dict[str, Any], path: Path) -> None:
    path.write_text(as_toml(chosen), encoding="utf-8")
    expected = Settings(**chosen)
    assert load(as_flags(chosen), {}) == expected
    assert load([], as_variables(chosen)) == expected
    assert load(["--config", str(path)], {}) == expected
    assert load([], {"JOBWIRE_CONFIG": str(path)}) == expected


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_setting_reads_the_same_from_flag_variable_and_file(setting: Setting, toml: Path) -> None:
    for value in samples(setting):
        check_all_sources_agree({setting.name: value, **COMPANIONS.get(setting.name, {})}, toml)


def test_any_settings_read_the_same_from_flags_variables_and_file(tmp_path: Path) -> None:
    free = [setting for setting in SETTINGS if setting.name not in COMPANIONS]

    @settings(deadline=None)
    @given(st.fixed_dictionaries({}, optional={setting.name: values(setting) for setting in free}))
    def check(chosen: dict[str, Any]) -> None:
        check_all_sources_agree(chosen, tmp_path / "jobwire.toml")

    check()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_setting_is_described_and_its_default_is_allowed(setting: Setting) -> None:
    assert setting.description.endswith(".")
    assert setting.group in GROUPS.values()
    default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
    assert setting.convert(Given(default, "by default", textual=False)) == setting.default


def test_flags_win_over_variables_and_variables_over_the_file(toml: Path) -> None:
    toml.write_text("port = 1001\nslots = 1\nthreads = 1\n", encoding="utf-8")
    environ = {"JOBWIRE_CONFIG": str(toml), "JOBWIRE_PORT": "1002", "JOBWIRE_SLOTS": "2"}
    loaded = load(["--port", "1003"], environ)
    assert (loaded.port, loaded.slots, loaded.threads) == (1003, 2, 1)


def test_the_flag_for_the_file_wins_over_the_variable_for_it(toml: Path) -> None:
    toml.write_text("port = 1001\n", encoding="utf-8")
    assert load(["--config", str(toml)], {"JOBWIRE_CONFIG": "/nowhere/at-all.toml"}).port == 1001


def test_a_flag_given_twice_counts_as_its_last() -> None:
    assert load(["--port", "1", "--port=2"], {}).port == 2


@pytest.mark.parametrize("text", ["true", "True", "1"])
def test_a_switch_can_be_set_by_variable(text: str) -> None:
    assert load([], {"JOBWIRE_LOCAL_MODE": text}).local_mode


def test_a_switch_can_be_unset_by_variable_over_the_file(toml: Path) -> None:
    toml.write_text("local_mode = true\n", encoding="utf-8")
    assert not load(["--config", str(toml)], {"JOBWIRE_LOCAL_MODE": "false"}).local_mode


def test_lists_are_comma_separated_and_trimmed() -> None:
    assert load(["--origins-allowed", " https://a.example ,https://b.example,, "], {}).origins_allowed == (
        "https://a.example",
        "https://b.example",
    )


def test_an_empty_text_unsets_an_optional_setting(toml: Path) -> None:
    toml.write_text('model = "some.gguf"\n', encoding="utf-8")
    assert load(["--config", str(toml), "--model", ""], {}).model is None


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", NO_TEXTS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("text", ["-1", "1e400", "nan", "", "x y"])
def test_a_wrong_text_is_refused_by_name_value_source_and_what_is_allowed(setting: Setting, text: str) -> None:
    message = refusal([], {setting.variable: text})
    assert message.startswith(f"{setting.name} is {text!r} (from the variable {setting.variable}), but must be ")
    assert message.endswith(f"{setting.allowed}.")


@pytest.mark.parametrize(
    ("setting", "beyond"),
    [
        (setting, limit + step)
        for setting in SETTINGS
        if isinstance(setting.type, inspect.IntType)
        for limit, step in ((setting.type.ge, -1), (setting.type.le, 1))
        if limit is not None
    ],
)
def test_a_whole_number_just_out_of_range_is_refused(setting: Setting, beyond: int) -> None:
    message = refusal([f"{setting.flag}={beyond}"])
    assert f"{setting.name} is '{beyond}' (from the flag {setting.flag})" in message
    assert f"at least {setting.type.ge} and at most {setting.type.le}" in message  # type: ignore[attr-defined]


def test_the_message_for_a_port_reads_well() -> None:
    assert refusal(["--port", "99999"]) == (
        "port is '99999' (from the flag --port), but must be a whole number, at least 0 and at most 65535."
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("port = '80'", "port is '80' (from {path}), but must be a whole number, at least 0 and at most 65535."),
        ("heartbeat_s = true", "heartbeat_s is True (from {path}), but must be a number, above 0 and at most 3600."),
        (
            "retention_s = inf",
            "retention_s is inf (from {path}), but must be a number, at least 0 and at most 2592000.",
        ),
        ("local_mode = 'yes'", "local_mode is 'yes' (from {path}), but must be true or false."),
        ("log_level = 'loud'", "log_level is 'loud' (from {path}), but must be one of debug, error, info, warning."),
        (
            "hosts_allowed = 'a.example'",
            (
                "hosts_allowed is 'a.example' (from {path}), but must be a list of texts (separated by commas where it "
                "is not TOML)."
            ),
        ),
        ("host = ''", "host is '' (from {path}), but must be a text that is not empty."),
        ("model = 7", "model is 7 (from {path}), but must be a text."),
    ],
)
def test_a_value_of_the_wrong_type_in_the_file_is_refused(toml: Path, line: str, message: str) -> None:
    toml.write_text(line, encoding="utf-8")
    assert refusal(["--config", str(toml)]) == message.format(path=toml)


@pytest.mark.parametrize("url", ["ftp://queen", "queen:9000", "http://", "http://a b"])
def test_a_coordinator_must_be_an_http_url(url: str) -> None:
    assert refusal(["--queen-url", url]).endswith("but must be a URL that begins with http:// or https://.")


def test_a_wrong_secret_is_not_shown() -> None:
    message = refusal([], {"JOBWIRE_API_KEY": "sesame open"})
    assert "sesame" not in message
    assert message == (
        "api_key is (not shown) (from the variable JOBWIRE_API_KEY), but must be printable ASCII without spaces."
    )


def test_the_key_does_not_show_in_a_printed_settings_object() -> None:
    assert "sesame" not in repr(load([], {"JOBWIRE_API_KEY": "sesame"}))


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--prot", "1"], {}, "--prot (a flag) is not a setting. Did you mean --port?"),
        (["--queue-job-max=1"], {}, "--queue-job-max (a flag) is not a setting. Did you mean --queue-jobs-max?"),
        (["--zzz"], {}, "--zzz (a flag) is not a setting. `jobwire serve --help` lists all."),
        (
            [],
            {"JOBWIRE_MODLE": "m"},
            "JOBWIRE_MODLE (a variable of the environment) is not a setting. Did you mean JOBWIRE_MODEL?",
        ),
        (["model.gguf"], {}, "'model.gguf' is one argument too many. `jobwire serve --help` shows what is allowed."),
        (["--port"], {}, "Argument --port: expected one argument. `jobwire serve --help` shows what is allowed."),
        (["--por", "1"], {}, "--por (a flag) is not a setting. Did you mean --port?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_likeliest_one(
    argv: list[str], environ: dict[str, str], message: str
) -> None:
    assert refusal(argv, environ) == message


def test_an_unknown_key_in_the_file_is_refused_with_the_likeliest_one(toml: Path) -> None:
    toml.write_text("slot = 3\n", encoding="utf-8")
    assert refusal(["--config", str(toml)]) == f"slot (a key in {toml}) is not a setting. Did you mean slots?"


def test_what_kubernetes_says_of_a_service_of_our_name_is_no_setting() -> None:
    environ = {
        "JOBWIRE_SERVICE_HOST": "10.0.0.1",
        "JOBWIRE_SERVICE_PORT": "80",
        "JOBWIRE_SERVICE_PORT_HTTP": "80",
        "JOBWIRE_PORT": "tcp://10.0.0.1:80",
        "JOBWIRE_PORT_80_TCP": "tcp://10.0.0.1:80",
        "JOBWIRE_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert load([], environ) == load([], {})
    assert refusal([], environ | {"JOBWIRE_SERVICES": "1"}).startswith("JOBWIRE_SERVICES (a variable")


def test_a_file_may_begin_with_a_byte_order_mark(toml: Path) -> None:
    toml.write_bytes(b"\xef\xbb\xbfslots = 3\r\n")
    assert load(["--config", str(toml)], {}).slots == 3


def test_a_missing_or_broken_file_is_refused(toml: Path) -> None:
    assert refusal(["--config", str(toml)]) == (f"The settings file {toml} cannot be read: No such file or directory.")
    toml.write_text("port 80", encoding="utf-8")
    assert refusal(["--config", str(toml)]).startswith(f"The settings file {toml} is not TOML: ")
    toml.write_bytes(b"model = '\xff'")
    assert refusal(["--config", str(toml)]).startswith(f"The settings file {toml} is not TOML: ")


# ---- rules across settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.example.org", "localhost.evil"])
def test_an_open_bind_without_a_key_is_refused(host: str) -> None:
    message = refusal(["--host", host])
    assert message.startswith(f"host {host} can be reached from other machines, and no api_key protects it.")
    assert "JOBWIRE_API_KEY" in message
    with pytest.raises(ConfigError):
        Settings(host=host)
    assert load(["--host", host], {"JOBWIRE_API_KEY": KEY}).host == host


@pytest.mark.parametrize("key", ["brief", "fifteen-letters"])
def test_an_open_bind_with_a_key_that_can_be_guessed_is_refused(key: str) -> None:
    message = refusal(["--host", "0.0.0.0"], {"JOBWIRE_API_KEY": key})
    assert "openssl rand -hex 16" in message
    assert key not in message
    with pytest.raises(ConfigError, match="guessed"):
        Settings(host="0.0.0.0", api_key=key, keys_file="keys.toml")
    assert load(["--host", "0.0.0.0"], {"JOBWIRE_API_KEY": key + "x" * (16 - len(key))})


def warnings(argv: list[str], environ: dict[str, str] | None = None) -> tuple[Settings, list[str]]:
    """Return the settings, and what they warn of."""
    said: list[str] = []
    return load(argv, environ or {}, warn=said.append), said


def test_on_loopback_a_short_key_is_warned_of() -> None:
    (warning,) = warnings([], {"JOBWIRE_API_KEY": "fifteen-letters"})[1]
    assert "openssl rand -hex 16" in warning
    assert "fifteen" not in warning
    assert warnings([], {"JOBWIRE_API_KEY": "sixteen-letters!"})[1] == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_settings_file_with_a_key_in_it_is_for_its_owner(toml: Path, mode: int) -> None:
    toml.write_text(f'api_key = "{KEY}"\n', encoding="utf-8")
    toml.chmod(0o600)
    assert warnings(["--config", str(toml)])[1] == []
    toml.chmod(mode)
    assert warnings(["--config", str(toml)])[1] == [
        (
            f"The settings file {toml} has secrets in it, and other users of this machine may read or change it. "
            f"Keep it to its owner: chmod 600 {toml}"
        )
    ]
    toml.write_text("slots = 3\n", encoding="utf-8")
    assert warnings(["--config", str(toml)])[1] == []


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_taken_from_every_source_with_a_warning(old: str, toml: Path) -> None:
    new = RENAMED[old]
    toml.write_text(f"{old} = 7\n", encoding="utf-8")
    for argv, environ, source in (
        ([flag(old), "7"], {}, f"from the flag {flag(old)}"),
        ([], {variable(old): "7"}, f"from the variable {variable(old)}"),
        (["--config", str(toml)], {}, f"from {toml}"),
    ):
        loaded, said = warnings(argv, environ)
        assert getattr(loaded, new) == 7
        assert said == [f"{old} ({source}) is called {new} now. The next release does not know the old name."]
        assert load(argv, environ) == loaded


@pytest.mark.parametrize("old", RENAMED)
def test_old_and_new_names_have_the_usual_precedence(old: str, toml: Path) -> None:
    new = RENAMED[old]
    toml.write_text(f"{old} = 1\n{new} = 2\n", encoding="utf-8")
    file = ["--config", str(toml)]
    assert getattr(load(file, {}), new) == 2
    assert getattr(load(file, {variable(old): "3"}), new) == 3
    assert getattr(load([*file, flag(old), "4"], {variable(new): "3"}), new) == 4
    assert getattr(load([*file, flag(old), "4", flag(new), "5"], {}), new) == 5
    assert refusal([flag(old), "x"]).startswith(f"{new} is 'x' (from the flag {flag(old)}), but must be a whole number")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    assert load(["--host", host], {}).host == host


def test_contradictions_are_refused() -> None:
    assert refusal(["--max-tokens-default", "9", "--max-tokens-max", "8"]) == (
        "max_tokens_default is 9, but must be at most max_tokens_max, which is 8."
    )
    assert refusal(["--engine-restart-backoff-s", "9", "--engine-restart-backoff-max-s", "8"]) == (
        "engine_restart_backoff_s is 9.0, but must be at most engine_restart_backoff_max_s, which is 8.0."
    )


@pytest.mark.parametrize("origin", ["*", "https://*.example", "a.example", "https://a.example/", "null", "https://"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    shown = refusal(["--origins-allowed", origin])
    assert shown.startswith("origins_allowed is ")
    assert shown.endswith("must be a list of origins like https://page.example, without paths, and without *.")


# ---- older launchers, help -------------------------------------------------------------------------------------------


def test_the_arguments_of_older_launchers_are_understood() -> None:
    queen = "http://127.0.0.1:7833"
    loaded = load(["--worker-id", "w-1", "--model", "M", "--device", "1", "--port", "9301", "--queen-url", queen], {})
    assert (loaded.worker_id, loaded.model, loaded.device, loaded.port, loaded.queen_url) == (
        "w-1",
        "M",
        1,
        9301,
        queen,
    )
    loaded = load(["--hive-url", queen, "--model-ref", "M", "--backend", "cuda", "--local-mode"], {})
    assert (loaded.queen_url, loaded.model, loaded.engine, loaded.local_mode) == (
        queen,
        "M",
        "exllamav2",
        True,
    )


@pytest.mark.parametrize(("backend", "engine"), [("cpu", "auto"), ("metal", "auto"), ("cuda", "exllamav2")])
def test_a_backend_is_a_hint_for_the_engine(backend: str, engine: str) -> None:
    assert load(["--backend", backend], {}).engine == engine


def test_an_unknown_backend_is_refused() -> None:
    assert refusal(["--backend", "rocm"]) == (
        "Argument --backend: 'rocm' is not one of cpu, cuda, metal. `jobwire serve --help` shows what is allowed."
    )


def test_help_shows_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(["--help"], {})
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for setting in SETTINGS:
        assert f"{setting.flag} " in shown
        assert f"{setting.description} Default: {setting.default_shown}." in shown
    for title in GROUPS.values():
        assert f"{title}:" in shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("port", "8080"),
        ("frame_bytes_max", "1048576 = 1 MiB"),
        ("prompt_bytes_max", "1000000"),
        ("heartbeat_s", "15"),
        ("model", "none"),
        ("local_mode", "no"),
    ],
)
def test_defaults_are_shown_for_people(name: str, shown: str) -> None:
    assert schema()[name].default_shown == shown


def test_every_group_begins_at_a_setting() -> None:
    assert GROUPS.keys() <= schema().keys()
    assert next(iter(GROUPS)) == SETTINGS[0].name


# ---- settings of one engine alone ------------------------------------------------------------------------------------


def test_what_exllamav2_is_told_is_what_differs_from_the_defaults() -> None:
    asked = ["--engine", "exllamav2", "--cache", "q4", "--slice-tokens", "0", "--tensor-parallel"]
    given = load([*asked, "--loras", "one=0.5, two", "--chunk-tokens", "512"], {})
    assert given.exllamav2 == {"cache": "q4", "slice_tokens": "0", "tensor_parallel": "true", "loras": "one=0.5,two"}


@pytest.mark.parametrize("split", ["all", "20,", "20;24", "-1", "20 24", "auto,20"])
def test_a_wrong_gpu_split_is_refused_at_start(split: str) -> None:
    expected = (
        f"gpu_split is {split!r} (from the flag --gpu-split), but must be auto, or GiB for each GPU, as in 20,24."
    )
    assert refusal([f"--gpu-split={split}", "--engine", "exllamav2"]) == expected


@pytest.mark.parametrize("lora", ["one=big", "=2", "one=1=2"])
def test_a_wrong_lora_is_refused_at_start(lora: str) -> None:
    assert "folders separated by commas" in refusal(["--loras", lora, "--engine", "exllamav2"])


def test_chunks_are_whole_pages() -> None:
    assert "a multiple of 256" in refusal(["--chunk-tokens", "300", "--engine", "exllamav2"])


def test_only_one_way_to_guess_tokens() -> None:
    assert "Choose one" in refusal(["--engine", "exllamav2", "--ngram", "--draft-model", "small"])


@pytest.mark.parametrize("engine", [["--engine", "numpy"], ["--engine", "llama_cpp", "--model", "a.gguf"], []])
def test_another_engine_does_not_start_with_them(engine: list[str]) -> None:
    message = refusal([*engine, "--cache", "q4", "--ngram"])
    runs = engine[1] if engine else "numpy, which runs the bundled model"
    assert message.startswith(f"Only ExLlamaV2 has the settings cache, ngram, but the engine is {runs}. Leave them")
