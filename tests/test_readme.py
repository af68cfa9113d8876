"""The README keeps its word: its example runs, its links lead somewhere, its tree is the tree."""

import re
from pathlib import Path

import pytest

import proximo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "runs/example/result.json").is_file()


def test_the_examples_of_the_python_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    examples = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    exec(compile(examples, "python.md", "exec"), {})
    assert (tmp_path / "runs/recurrent/result.json").is_file()


def test_its_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_its_tree_is_the_tree():
    package = Path(proximo.__file__).parent
    rooms = {p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    listed = {
        name.removesuffix(".py").rstrip("/") for name in re.findall(r"^  (\S+)", README, re.M)
    }
    assert rooms - {"__init__", "__main__"} <= listed


@pytest.mark.parametrize(
    "algorithm",
    [
        proximo.PPO(critic_learning_rate=1e-3, clip_high=0.3, desired_kl=0.01),
        proximo.PPOPenalty(),
        proximo.TRPO(),
        proximo.A2C(),
        proximo.QActorCritic(),
        proximo.Reinforce(),
    ],
    ids=lambda algorithm: algorithm.name,
)
def test_the_metrics_page_explains_every_key(algorithm, tmp_path):
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    proximo.train(
        "CartPole-v1",
        algorithm,
        total_steps=512,
        rollout=proximo.RolloutConfig(steps=128),
        run_config=proximo.RunConfig(eval_every=1, eval_episodes=1),
        run_dir=tmp_path / "run",
    )
    from proximo.run.folder import RunFolder
    from proximo.run.readings import READINGS

    for key in RunFolder(tmp_path / "run").read_metrics()[0]:
        assert f"`{key}`" in page, key
        assert key in READINGS, key


def test_its_results_are_the_recorded_ones():
    results = ROOT / "benchmarks" / "results"
    scores, speed = (
        (results / name).read_text(encoding="utf-8").strip() for name in ("scores.md", "speed.md")
    )
    assert scores in README
    for name in ("lineage.md", "teaching.md", "puzzles.md"):
        assert (results / name).read_text(encoding="utf-8").strip() in README, name
    for page in ("lineage.md", "lineage.zh.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for name in ("lineage.md", "table1.md"):
            table = (results / name).read_text(encoding="utf-8").split("\n\n")[0]
            assert table in text, (page, name)
    assert speed.split("\n\n")[0] in README
    assert speed in (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
