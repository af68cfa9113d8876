"""Files that somebody made: whatever they hold, they are refused in one line, and run nothing."""

import copy
import json
import pickle
import random
import resource
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from commands.command_line import proximo, refusal
from proximo import UsageError, load
from proximo.run import checkpoint
from proximo.run.checkpoint import Checkpoint, Damaged
from proximo.run.control import make_session
from proximo.run.folder import RunFolder

LAST = "checkpoints/last.safetensors"


@pytest.fixture
def run(here, trained):
    """A finished run, to be forged."""
    shutil.copytree(trained, here / "r")
    return here / "r"


def forge(path, tensors, text):
    """A checkpoint of these contents whose digest is right. text: of the record."""
    header = {"record": text, "sha256": checkpoint._digest(tensors, text)}
    path.write_bytes(safetensors.torch.save(tensors, {"proximo": json.dumps(header)}))


def record_of(path):
    saved = Checkpoint(path)
    return saved.tensors, saved.record


def changed(record, place, value):
    """The record with another value at a place such as spaces.0.shape; DELETE takes it out."""
    record = json.loads(json.dumps(record))
    *way, last = [int(word) if word.isdigit() else word for word in place.split(".")]
    inner = record
    for key in way:
        inner = inner[key]
    if value is DELETE:
        del inner[last]
    else:
        inner[last] = value
    return record


DELETE = object()
RECORDS = [
    ("updates", -1),
    ("updates", "8"),
    ("updates", 8.0),
    ("updates", True),
    ("updates", 2**63),
    ("updates", 10**4000),
    ("updates", DELETE),
    ("horizon", 0),
    ("steps", None),
    ("smoothed", float("nan")),
    ("best", float("inf")),
    ("best", 10**400),
    ("beta", -1.0),
    ("rate_scale", None),
    ("recent", {}),
    ("recent", [[1.0, 2]] * 101),
    ("recent", [[1.0]]),
    ("recent", [[1.0, 2, 1]]),
    ("recent", [[1.0, 2, True, 0]]),
    ("recent", [["1", 2]]),
    ("recent", [[float("nan"), 2]]),
    ("policy_only", 0),
    ("spaces", []),
    ("schema", [1]),
]
SPACES = [
    ("spaces.0", None),
    ("spaces.0.kind", "Graph"),
    ("spaces.0.dtype", "object"),
    ("spaces.0.dtype", "(1000000,1000000)f8"),
    ("spaces.0.dtype", "f8,f8"),
    ("spaces.0.dtype", "uint8"),
    ("spaces.0.low.0", "nan"),
    ("spaces.0.low.0", "1e999"),
    ("spaces.0.shape", [-1]),
    ("spaces.0.shape", [10**9, 10**9]),
    ("spaces.0.low", []),
    ("spaces.1.n", 0),
    ("spaces.1.n", 3),
    ("spaces.1.n", 2**70),
    ("spaces.1.n", 10**9),
    ("spaces.1.n", "2"),
    ("spaces.1.start", 0.5),
    ("spaces.1.extra", 1),
    ("spaces.1", {"kind": "MultiBinary", "shape": [10**5, 10**5]}),
    ("spaces.1", {"kind": "MultiDiscrete", "n": [10**12], "start": [0]}),
    ("spaces.1", {"kind": "Tuple", "parts": []}),
    ("spaces.1", {"kind": "Dict", "parts": [["a", 1]]}),
]


def short(value):
    return "out" if value is DELETE else f"{value}"[:20]


@pytest.mark.parametrize(("place", "value"), RECORDS, ids=short)
def test_a_record_that_cannot_be_is_refused(run, place, value):
    tensors, record = record_of(run / LAST)
    forge(run / LAST, tensors, json.dumps(changed(record, place, value)))
    message = refusal(proximo("resume", run, "--strict"))
    assert f"{run / LAST}" in message
    assert place in message
    assert len(message) < 600
    refusal(proximo("eval", run))


@pytest.mark.parametrize(("place", "value"), SPACES, ids=short)
def test_spaces_that_are_none_are_refused(run, place, value):
    tensors, record = record_of(run / LAST)
    forge(run / LAST, tensors, json.dumps(changed(record, place, value)))
    message = refusal(proximo("eval", run))
    assert f"{run / LAST}" in message
    assert len(message) < 600


def of(kind):
    return lambda tensor: tensor.to(kind)


def nan(tensor):
    tensor.reshape(-1)[0] = float("nan")
    return tensor


TENSORS = [
    ("policy.logits.weight", of(torch.float64)),
    ("policy.logits.weight", lambda x: x[:1]),
    ("policy.logits.weight", nan),
    ("policy.logits.weight", None),
    ("policy.unheard.weight", lambda x: torch.zeros(3)),
    ("optimizer.0.exp_avg", lambda x: x[1:]),
    ("optimizer.0.exp_avg_sq", lambda x: x - 1),
    ("optimizer.0.step", nan),
    ("optimizer.9.step", lambda x: torch.zeros(())),
    ("collecting", lambda x: x[:100]),
    ("collecting", lambda x: x * 0),
    ("shuffling", None),
    ("envs.obs", lambda x: x[:1]),
    ("envs.obs", nan),
    ("envs.obs", of(torch.uint8)),
    ("envs.episode", of(torch.int32)),
    ("envs.episode", lambda x: x - 10**6),
    ("envs.ret", nan),
    ("envs.length", lambda x: -x - 1),
    ("envs.actions.0", lambda x: torch.full_like(x, 99)),
    ("envs.actions.0", lambda x: torch.zeros(3, 2, dtype=torch.int64)),
    ("envs.actions.7", lambda x: torch.zeros(3, dtype=torch.int64)),
    ("recurrent_state", lambda x: torch.zeros(5, 5)),
    ("ahead", lambda x: torch.zeros(1, 5)),
    ("reward_return", lambda x: torch.zeros(2)),
    ("obs_moments.number", lambda x: torch.zeros((), dtype=torch.float64)),
]


@pytest.mark.parametrize(("name", "change"), TENSORS)
def test_a_tensor_that_does_not_fit_is_refused(run, name, change):
    tensors, record = record_of(run / LAST)
    before = tensors.pop(name, None)
    if change:
        tensors[name] = change(before).contiguous()
    forge(run / LAST, tensors, json.dumps(record))
    message = refusal(proximo("resume", run, "--total-steps", "576"))
    assert name.partition(".")[0] in message or "replayed" in message
    if name.startswith("policy."):
        assert name in refusal(proximo("eval", run))


# Fuzzing


NASTY = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**70, 10**400, 0.5, 1e308, -1e308),
    *(float("nan"), float("inf"), "", "x" * 999, "\0", "\ud800", [], {}, [[]], {"kind": "Box"}),
    json.loads("[" * 300 + "]" * 300),
]
TEXTS = [
    "[" * 10**5,
    "{}",
    "null",
    "1" * 5000,
    '{"schema": 1}',
    "[1" + ",1" * 10**5 + "]",
]


def places(part, way=()):
    """Every place in a record, as keys that lead to it."""
    inner = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in inner:
        yield (*way, key)
        if isinstance(value, dict | list):
            yield from places(value, (*way, key))


class Fuzz:
    """Changes a checkpoint at random; what its digest covers keeps a digest that is right."""

    def __init__(self, path, seed):
        self.whole = path.read_bytes()
        self.tensors, self.record = record_of(path)
        self.places = list(places(self.record))
        self.chance = random.Random(seed)
        self.header = 8 + int.from_bytes(self.whole[:8], "little")

    def write(self, path):
        """Returns whether the file is damaged for certain."""
        kind = self.chance.choice([self.bytes, self.outline, self.contents, self.numbers])
        return kind(path)

    def bytes(self, path):
        content, chance = bytearray(self.whole), self.chance
        for _ in range(chance.choice([1, 1, 2, 8])):
            end = chance.choice([8, 300, self.header, len(content)])
            begin = min(chance.randrange(end), len(content) - 1)
            length = chance.choice([1, 1, 4, 100])
            change = chance.randrange(4)
            if change == 0:
                content[begin : begin + length] = chance.randbytes(length)
            elif change == 1:
                del content[begin : begin + length]
            elif change == 2:
                content[begin:begin] = chance.randbytes(length)
            else:
                content[begin] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        return bytes(content) != self.whole

    def outline(self, path):
        """What safetensors says of the tensors, and the length of that."""
        header = json.loads(self.whole[8 : self.header])
        chance = self.chance
        name = chance.choice([*header, "new"])
        about = header.setdefault(name, {})
        key = chance.choice(["dtype", "shape", "data_offsets", "proximo"])
        types = ["F64", "F16", "BF16", "F8_E4M3", "BOOL", "I8", "U64", "C64", "F4", "X"]
        sizes = [[2**40], [2**63, 2], [-1], [1] * 1000, [0], [0, 2**62]]
        about[key] = chance.choice([*types, *sizes, *NASTY[:-1]])
        text = json.dumps(header).encode()
        length = chance.choice([len(text), len(text), len(text) + 1, 2**63, 10**8, 0])
        path.write_bytes(length.to_bytes(8, "little") + text + self.whole[self.header :])
        return False  # the same numbers may have two names

    def contents(self, path):
        record = json.loads(json.dumps(self.record))
        for _ in range(self.chance.choice([1, 1, 3])):
            *way, last = self.chance.choice(self.places)
            inner = record
            try:
                for key in way:
                    inner = inner[key]
                if self.chance.random() < 0.1:
                    del inner[last]
                else:
                    inner[last] = copy.deepcopy(self.chance.choice(NASTY))
            except (KeyError, IndexError, TypeError):
                continue  # it is gone by an earlier change
        text = json.dumps(record)
        if self.chance.random() < 0.05:
            text = self.chance.choice(TEXTS)
        try:
            forge(path, self.tensors, text)
        except UnicodeEncodeError:
            path.write_bytes(b"")
        return False

    def numbers(self, path):
        chance, tensors = self.chance, dict(self.tensors)
        name = chance.choice(
            [*tensors, "recurrent_state", "ahead", "reward_return", "envs.actions.5"]
        )
        tensor = tensors.pop(name, torch.zeros(2))
        kinds = [torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8]
        change = chance.randrange(6)
        if change == 0:
            tensors[name] = tensor.to(chance.choice(kinds))
        elif change == 1:
            tensors[name] = tensor[None]
        elif change == 2:
            tensors[name] = tensor.reshape(-1)[chance.randrange(3) :].contiguous()
        elif change == 3 and tensor.numel():
            tensor = tensor.clone()
            value = chance.choice([-1, 0, 99, float("nan"), float("inf"), 1e30])
            if tensor.is_floating_point() or abs(value) < 100:
                tensor.reshape(-1)[chance.randrange(tensor.numel())] = value
            tensors[name] = tensor
        elif change == 4:
            tensors[chance.choice([*self.tensors, "new", "policy.new"])] = tensor.clone()
        forge(path, tensors, json.dumps(self.record))
        return False


ALLOWED = 2**26
"""Bytes by which reading any thousand of the files may raise the peak of this process."""


def peak():
    """Bytes of memory that this process has held at once."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize(
    "cases", [2000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])]
)
def test_any_file_is_read_or_refused(run, cases):
    path, folder = run / LAST, RunFolder(run)
    fuzz, whole = Fuzz(path, cases), record_of(path)
    config, accepted = folder.read_config(), 0
    with make_session(config) as session:
        state = session.state
        highest = peak()
        for case in range(cases):
            if case % 1000 == 0:
                assert peak() - highest < ALLOWED
                highest = peak()
            damaged = fuzz.write(path)
            state.obs_moments = state.return_moments = state.reward_moments = None
            state.reward_return = state.recurrent_state = state.ahead = None
            state.envs.actions = [[] for _ in state.envs.actions]
            try:
                saved = Checkpoint(path)
                assert not damaged
                assert min(saved.updates, saved.steps) >= 0
                saved.load_state(state)
                if accepted % 16 == 0:
                    load(run)
                accepted, said = accepted + 1, ""
            except UsageError as error:
                said = str(error)
            assert len(said) < 1000
            assert "\n" not in said
        assert peak() - highest < ALLOWED
        assert 0 < accepted < cases / 4
        forge(path, whole[0], json.dumps(whole[1]))
        Checkpoint(path).load_state(state)


# Every file of a run folder


class Payload:
    """Unpickled, it leaves a file named `marker`."""

    def __reduce__(self):
        return Path.touch, (Path("marker"),)


def json_of(depth):
    return ('{"update": ' * depth + "1" + "}" * depth).encode()


PAYLOADS = {
    "a pickle": pickle.dumps(Payload()),
    "python": b"__import__('pathlib').Path('marker').touch()\n",
    "yaml": b"!!python/object/apply:pathlib.Path.touch [marker]\n",
    "toml": b'[net]\nactivation = \'__import__("pathlib").Path("marker").touch()\'\n',
    "code in toml": b"[env]\nid = 'own_env:Env'\n[net]\nmodule = 'own_env:Env'\n",
    "wrappers": b"[env]\nid = 'CartPole-v1'\nwrappers = ['own_env:Env']\n",
    "depth": json_of(10**5),
    "depth in toml": b"[env]\nid = " + b"[" * 10**5,
    "deep keys": b"a." * 10**3 + b"a = 1",
    "long": b"#" * 10**6,
    "huge": b'{"update": 1' + b"0" * 5000 + b', "seconds": 1e999}\n',
    "huge in toml": b"[run]\nseed = 1" + b"0" * 5000,
    "large": b'{"update": 1, "steps": 1e300, "seconds": 1, "return_mean": 1e300}\n' * 3,
    "nan": b'{"update": NaN, "steps": NaN, "seconds": NaN, "stopped_by": NaN}\n',
    "nan in toml": b"[env]\nid = 'CartPole-v1'\n[run]\nsmoothing = nan\n",
    "types": b'{"update": "1", "steps": [], "seconds": {}, "stopped_by": ["stop_at"]}\n',
    "rows": b'{"update": 1, "seconds": 1, "steps": "x", "return_mean": [1]}\n[]\nnull\n"x"\n',
    "types in toml": b"algorithm = 1\nrun = 'x'\n",
    "no text": bytes(range(256)),
    "nothing": b"",
}
FILES = ["config.toml", "metrics.jsonl", "result.json", "versions.json", "log", LAST]
VERBS = [
    ("eval", "r", "--episodes", "1"),
    ("resume", "r", "--total-steps", "576", "--quiet"),
    ("plot", "r"),
    ("export", "r"),
    ("play", "r", "--video", "r.gif", "--episodes", "1"),
    ("train", "--config", "r/config.toml", "--total-steps", "64", "--run-dir", "new", "--quiet"),
    ("train", "ppo", "CartPole-v1", "--from", "r", "--run-dir", "new", "--total-steps", "64"),
    ("lm", "resume", "r"),
    ("report", "r", "--no-play"),
]
READS = {
    "config.toml": [*VERBS[:3], VERBS[5], *VERBS[7:]],
    "metrics.jsonl": [VERBS[1], VERBS[2], VERBS[8]],
    "result.json": [VERBS[0], VERBS[1], VERBS[8]],
    "versions.json": [VERBS[0], VERBS[1], VERBS[8]],
    "log": [VERBS[1], VERBS[8]],
    LAST: [VERBS[0], VERBS[1], VERBS[3], VERBS[4], VERBS[6]],
}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file).stem)
def test_no_file_of_a_run_runs_or_crashes_anything(here, trained, own_env, file, payload):
    for words in READS[file]:
        shutil.copytree(trained, here / "r")
        (here / "r" / file).write_bytes(PAYLOADS[payload])
        ended = proximo(*words)
        assert ended.code in (0, 2), (words, ended)
        assert "Traceback" not in ended.err
        assert ended.err.count("\n") <= 3 or "--help" in ended.err
        assert len(ended.err) < 2000
        assert not (here / "marker").exists()
        assert not (here / "imported").exists()
        shutil.rmtree(here / "r")
        shutil.rmtree(here / "new", ignore_errors=True)


@pytest.mark.parametrize("payload", ["a pickle", "depth", "huge", "types"])
def test_a_forged_header_runs_nothing(run, payload):
    text = PAYLOADS[payload].decode("latin-1")
    tensors, _ = record_of(run / LAST)
    forge(run / LAST, tensors, text)
    with pytest.raises(UsageError):
        Checkpoint(run / LAST)
    content = safetensors.torch.save(tensors, {"proximo": text})
    (run / LAST).write_bytes(content)
    with pytest.raises(Damaged):
        Checkpoint(run / LAST)
