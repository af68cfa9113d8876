"""Return, value and action probabilities of a policy, drawn beside the frames of its env."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from proximo.agent import Agent
from proximo.commands.pictures import extra
from proximo.commands.video import Video
from proximo.envs.layers import unwrapped
from proximo.errors import faults, printable
from proximo.evaluation import EpisodePlayer
from proximo.nets.heads import Choice, Interval
from proximo.types import Segments

INK, MUTED, PAPER = (32, 38, 46), (112, 120, 130), (250, 250, 248)
TRACK, BLUE, PALE, ORANGE, GREEN = (
    *((226, 229, 233), (31, 95, 168), (158, 189, 222)),
    *((209, 105, 14), (27, 138, 107)),
)
HEIGHT = 360
"""Height up to which small frames are enlarged, in whole steps."""
WIDTH = 1280
"""Width that an enlarged frame may have."""
ROW, CLOSE = 1.6, 1.15
"""Height of a row of the action, in units, and where there are many."""
SHORTEST, HISTORY = 50, 200
"""Steps of the axis of the curve of values, and how far it reaches back."""

Marginal = Choice | Interval


@dataclass
class Moment:
    """One agent in one state: what it expects, and what it does."""

    name: str
    ret: float
    """Return up to this state."""
    value: float | None
    """Estimate of the critic; None: there is none, or the episode is over."""
    marginals: list[Marginal]
    """Distribution of each number of the action; none if the agent does not act."""
    action: np.ndarray | None = None
    """Numbers of the action, as the env takes it."""


class Overlay:
    """Draws, beside each frame of a video, what the policy made of the state that it shows.

    The policy's numbers are computed apart from the acting, so that the same actions are taken with
    and without it. A frame is written when the action in it is known: with the next state.
    """

    def __init__(self, agent: Agent, player: EpisodePlayer, video: Video, env: Any) -> None:
        self._policy, self._player, self._video = agent.policy, player, video
        self._critic = agent.config.algorithm.critic
        self._names = player.envs.names or ("",)
        self._moments = list[Moment]()
        self._frame: np.ndarray | None = None
        value = "Q of the likeliest" if agent.policy.q_critic else "value estimate"
        self._painter = Painter(
            value=value + ", of scaled rewards" * agent.config.algorithm.normalize_reward,
            labels=_labels(agent),
            meanings=_meanings(env, agent),
        )

    def begin(self, title: str = "") -> None:
        """Take the next state as the first of an episode. title: the one that it has there."""
        self._painter.begin(title)
        count = len(self._names)
        self._step, self._moments = 0, []
        self._ret = np.zeros(count)
        policy = self._policy
        self._state = torch.zeros(
            count, policy.state_size, dtype=policy.dtype, device=policy.device
        )

    def watch(self) -> None:
        """Take in the state of the env as it is now, and the step that led to it."""
        buffer, first = self._player.buffer, not self._moments
        if not first:
            self._ret += np.where(buffer.valid[0], buffer.reward[0], 0)
            self._write(buffer.env_action[0])
            self._step += 1
        acting = self._player.envs.acting(buffer, 0)
        self._moments = self._read(buffer.obs[0 if first else 1], acting)
        self._frame = self._video.take()

    def end(self) -> None:
        """Write the last state, in which nobody acts any more."""
        for moment in self._moments:
            moment.value, moment.marginals = None, []
        self._write(None)
        self._moments = []

    def _write(self, actions: np.ndarray | None) -> None:
        for i, moment in enumerate(self._moments):
            if actions is not None and moment.marginals:
                moment.action = actions[i].astype(np.float64).reshape(-1)
        self._painter.take_in(self._moments)
        if self._frame is not None:
            self._video.write(self._painter.beside(self._frame, self._step, self._moments))

    @torch.no_grad()
    def _read(self, obs: np.ndarray, acting: np.ndarray) -> list[Moment]:
        policy, rows = self._policy, self._policy.as_rows(obs)
        segments = None
        if policy.state_size:
            segments = Segments(torch.arange(len(rows), device=policy.device), self._state)
        action = policy.distribution(rows, segments).mode()
        seen = policy.evaluate(rows, action, entropy=False, segments=segments)
        if seen.recurrent_state is not None:
            self._state = seen.recurrent_state
        marginals = policy.head.marginals(seen.distribution)
        return [
            Moment(
                name=name,
                ret=float(self._ret[i]),
                value=float(seen.value[i]) if self._critic and acting[i] else None,
                marginals=[_of_row(marginal, i) for marginal in marginals] if acting[i] else [],
            )
            for i, name in enumerate(self._names)
        ]


def _of_row(marginal: Marginal, i: int) -> Marginal:
    if isinstance(marginal, Choice):
        return marginal._replace(probabilities=marginal.probabilities[i].cpu())
    return marginal._replace(ends=marginal.ends[:, i])


def _labels(agent: Agent) -> list[str]:
    """Short names of the numbers of an action: their place in the space."""
    labels = []
    for leaf in agent.policy.actions.leaves:
        name, count = ".".join(leaf.keys), leaf.end - leaf.begin
        several = [f"{name}[{i}]" if name else str(i) for i in range(count)]
        labels += several if count > 1 else [name or "0"]
    return [printable(label, keep="") for label in labels]


def _meanings(env: Any, agent: Agent) -> list[str]:
    """Names of discrete actions, where the env has one for each: as Atari and MiniGrid do."""
    inner, count = unwrapped(env), sum(agent.policy.head.num_logits)
    try:
        named = hasattr(inner, "get_action_meanings")
        found = inner.get_action_meanings() if named else getattr(inner, "actions", ())
        names = [str(getattr(x, "name", x)) for x in itertools.islice(found, count + 1)]
    except faults():
        return []
    return [printable(name, keep="").lower() for name in names] if len(names) == count else []


class Painter:
    """Draws the panel beside a frame; all sizes are multiples of one unit, that of the text."""

    def __init__(self, *, value: str, labels: Sequence[str], meanings: Sequence[str]) -> None:
        self._image, self._draw = extra("PIL.Image"), extra("PIL.ImageDraw")
        self._load_font = functools.cache(extra("PIL.ImageFont").load_default)
        self._unit, self._left, self._right, self._bottom = 0, 0, 0, 0
        self._value, self._labels, self._meanings = value, labels, meanings
        self._extent = 0.0
        """Largest number in an action of a Box without bounds, which its axis ends at."""
        self._most_rows = 0

    def begin(self, title: str = "") -> None:
        """Forget the curve of the last episode. title: of the one that begins."""
        self._title, self._values = title, deque[float](maxlen=HISTORY)

    def take_in(self, moments: Sequence[Moment]) -> None:
        """Remember what the curve of values and the axes need, of every state."""
        value = moments[0].value if len(moments) == 1 else None
        if value is not None and np.isfinite(value):
            self._values.append(value)

    def beside(self, frame: np.ndarray, step: int, moments: Sequence[Moment]) -> np.ndarray:
        """The frame, enlarged if it is small, and the panel on its right."""
        height, width = frame.shape[:2]
        factor = max(1, min(-(-HEIGHT // height), WIDTH // width))
        frame = frame.repeat(factor, 0).repeat(factor, 1)
        height, width = frame.shape[:2]
        self._unit = max(13, round(height / 28))
        room = max(height, 18 * self._unit)
        room, side = room + room % 2, 18 * self._unit
        side += (width + side) % 2
        whole = np.empty((room, width + side, 3), np.uint8)
        whole[:] = PAPER
        top = (room - height) // 2
        if top:
            whole[:, :width] = 0
        whole[top : top + height, :width] = frame
        whole[:, width:] = self._panel((side, room), step, moments)
        return whole

    def _panel(self, size: tuple[int, int], step: int, moments: Sequence[Moment]) -> np.ndarray:
        picture = self._image.new("RGB", size, PAPER)
        self._on, self._picture = self._draw.Draw(picture), picture
        self._left, self._right, self._bottom = self._unit, size[0] - self._unit, size[1]
        self._on.line([(0, 0), (0, size[1])], fill=TRACK)
        y = 0.8 * self._unit
        if len(moments) == 1:
            self._one(y, step, moments[0])
        else:
            self._many(y, step, moments)
        return np.asarray(picture)

    def _one(self, y: float, step: int, moment: Moment) -> None:
        """A single agent: its return, its value with a curve, and its whole action.

        The curve takes the room that the action leaves.
        """
        u = self._unit
        self._label(y, "return so far")
        self._text((self._right, y), f"{self._title}step {step:,}", 0.85, MUTED, anchor="ra")
        self._text((self._left, y + 1.1 * u), _number(moment.ret), 1.9, INK)
        y += 4 * u
        if moment.value is not None or self._values:
            shown = "-" if moment.value is None else _number(moment.value)
            self._label(y, self._value)
            self._text((self._left, y + 1.1 * u), shown, 1.4, GREEN)
            y += 3 * u
            rows = ROW * u * self._rows_of(moment.marginals)
            room = self._bottom - y - rows - 3.8 * u
            if room >= 1.5 * u and self._values:
                height = min(room, 7 * u)
                self._curve((self._left, y, self._right, y + height))
                y += height
            y += u
        self._label(y, _heading(moment.marginals) if moment.marginals else "episode over")
        self._action(y + 1.5 * u, self._bottom - 0.5 * u, moment)

    def _rows_of(self, marginals: Sequence[Marginal]) -> int:
        """Rows of an action that is shown whole; as before when the episode is over."""
        first = marginals[0] if len(marginals) == 1 else None
        count = first.probabilities.numel() if isinstance(first, Choice) else len(marginals)
        self._most_rows = max(self._most_rows, count)
        return self._most_rows

    def _many(self, y: float, step: int, moments: Sequence[Moment]) -> None:
        """Several agents, one below the other, each as far as there is room for it."""
        u = self._unit
        self._label(y, f"{len(moments)} agents: return, value")
        self._text((self._right, y), f"{self._title}step {step:,}", 0.85, MUTED, anchor="ra")
        y += 1.5 * u
        fit = max(1, int((self._bottom - y) // (3.2 * u)))
        shown = moments if len(moments) <= fit else moments[: max(1, fit - 1)]
        each = (self._bottom - y - (len(shown) < len(moments)) * 1.4 * u) / len(shown)
        for moment in shown:
            away = not moment.marginals
            self._text((self._left, y), self._cut(moment.name, 7), 1.0, MUTED if away else INK)
            value = "" if moment.value is None else _number(moment.value)
            self._text((self._right, y), value, 1.0, GREEN, anchor="ra")
            at = (self._right - 4.6 * u, y)
            self._text(at, _number(moment.ret), 1.0, MUTED if away else INK, anchor="ra")
            self._action(y + 1.35 * u, y + each, moment)
            y += each
        if len(shown) < len(moments):
            self._text((self._left, y), f"and {len(moments) - len(shown)} more", 0.85, MUTED)

    def _action(self, top: float, bottom: float, moment: Moment) -> None:
        """Rows for the action: of one choice a bar for each possible one, else one per number."""
        rows = list[Callable[[float], None]]()
        row = (bottom - top) / max(1, self._rows_of(moment.marginals))
        row = min(ROW * self._unit, max(CLOSE * self._unit, row))
        fit = max(1, int((bottom - top) / row + 0.01))
        actions = moment.action if moment.action is not None else [None] * len(moment.marginals)
        first = moment.marginals[0] if len(moment.marginals) == 1 else None
        if isinstance(first, Choice) and fit > 1:
            rows = list(self._bars(first, actions[0], fit))
        else:
            few = len(moment.marginals) > fit > 1
            shown = moment.marginals[: fit - few]
            for label, marginal, action in zip(self._labels, shown, actions, strict=False):
                if isinstance(marginal, Choice):
                    rows.append(functools.partial(self._stack, label, marginal, action))
                else:
                    rows.append(functools.partial(self._interval, label, marginal, action))
            if few:
                text = f"and {len(moment.marginals) - len(shown)} more"
                rows.append(lambda y: self._text((self._left, y), text, 0.85, MUTED))
        for i, draw_row in enumerate(rows):
            draw_row(top + i * row)

    def _bars(
        self, choice: Choice, action: float | None, fit: int
    ) -> Iterator[Callable[[float], None]]:
        """A bar for each choice, or for the most likely ones and one for the rest."""
        p = choice.probabilities.tolist()
        taken = None if action is None else int(action) - choice.start
        shown = list(range(len(p)))
        if len(p) > fit:
            likely = sorted(shown, key=lambda i: (i != taken, -p[i]))
            shown = sorted(likely[: fit - 1])
        for i in shown:
            name = self._meanings[i] if self._meanings else str(choice.start + i)
            yield functools.partial(self._bar, name, p[i], i == taken)
        if len(shown) < len(p):
            rest = max(0.0, 1 - sum(p[i] for i in shown))
            yield functools.partial(self._bar, f"{len(p) - len(shown)} more", rest, False)

    def _bar(self, name: str, share: float, taken: bool, y: float) -> None:
        u, color = self._unit, ORANGE if taken else MUTED
        self._text((self._left, y), self._cut(name, 4.6), 0.95, color if taken else INK)
        left, right = self._left + 5.2 * u, self._right - 2.8 * u
        self._bar_of(left, right, y, [(share, ORANGE if taken else PALE)])
        self._text((self._right, y), f"{share:.2f}", 0.95, color, anchor="ra")

    def _bar_of(
        self, left: float, right: float, y: float, parts: Sequence[tuple[float, Any]]
    ) -> None:
        """A track that is filled by parts, each a share of it with a color."""
        top, bottom = y + 0.18 * self._unit, y + 0.95 * self._unit
        self._on.rectangle([left, top, right, bottom], fill=TRACK)
        for share, color in parts:
            end = left + share * (right - left)
            if share > 0.004:
                self._on.rectangle([left, top, max(left + 1, end), bottom], fill=color)
            left = end

    def _stack(self, label: str, choice: Choice, action: float | None, y: float) -> None:
        """One of several choices as a bar of shares, in order; the chosen one stands out."""
        u, p = self._unit, choice.probabilities.tolist()
        taken = None if action is None else int(action) - choice.start
        self._text((self._left, y), self._cut(label, 4), 0.95, INK)
        left, right = self._left + 4.6 * u, self._right - 4.8 * u
        shades = (PALE, tuple((a + b) // 2 for a, b in zip(PALE, TRACK, strict=True)))
        self._bar_of(
            left, right, y, [(x, ORANGE if i == taken else shades[i % 2]) for i, x in enumerate(p)]
        )
        if taken is not None:
            text = f"{int(action or 0)}: {p[taken]:.2f}" if 0 <= taken < len(p) else ""
            self._text((self._right, y), text, 0.95, ORANGE, anchor="ra")

    def _interval(self, label: str, interval: Interval, action: float | None, y: float) -> None:
        """Mean and standard deviation on the axis of a number, and the one that was chosen."""
        u = self._unit
        room = 2.4 if max(map(len, self._labels)) < 4 else 4
        self._text((self._left, y), self._cut(label, room), 0.95, INK)
        low, mean, high = map(float, interval.ends)
        begin, end = interval.low, interval.high
        if not np.isfinite([begin, end]).all():
            numbers = [abs(x) for x in (low, high, action or 0) if np.isfinite(x)]
            self._extent = max(self._extent, *numbers, 1e-6)
            begin, end = -self._extent, self._extent
        left, right = self._left + (room + 0.6) * u, self._right - 4 * u
        span = end - begin or 1.0

        def at(x: float) -> float:
            share: float = min(1.0, max(0.0, (x - begin) / span))
            return left + share * (right - left)

        middle = y + 0.56 * u
        self._on.line([(left, middle), (right, middle)], fill=TRACK, width=max(2, u // 6))
        band = [at(low), middle - 0.34 * u, max(at(high), at(low) + 1), middle + 0.34 * u]
        self._on.rectangle(band, fill=PALE)
        thick = max(2, u // 7)
        self._on.line(
            [(at(mean), middle - 0.42 * u), (at(mean), middle + 0.42 * u)], fill=BLUE, width=thick
        )
        if action is not None:
            r, x = 0.27 * u, at(action)
            self._on.ellipse([x - r, middle - r, x + r, middle + r], fill=ORANGE)
            self._text((self._right, y), f"{action:+.2f}", 0.95, ORANGE, anchor="ra")

    def _curve(self, box: tuple[float, float, float, float]) -> None:
        """The values of the last steps in a box, with the lowest and the highest beside it.

        It is drawn large and then made small, so that its edges are smooth.
        """
        u, scale = self._unit, 3
        values = np.array(self._values)
        low, high = values.min(), values.max()
        for y, x, anchor in ((box[1], high, "ra"), (box[3], low, "rd")):
            self._text((self._right, y), _number(x), 0.75, MUTED, anchor=anchor)
        width, height = round(box[2] - box[0] - 4 * u), round(box[3] - box[1])
        span = max(high - low, 1e-9 + 0.02 * max(abs(low), abs(high)))  # a flat one is flat
        x = np.arange(len(values)) / (max(SHORTEST, len(values)) - 1)
        y = 0.5 - (values - (low + high) / 2) / span
        margin = 0.3 * u
        points = np.stack([x * (width - 2 * margin) + margin, y * (height - 2 * margin) + margin])
        large = self._image.new("RGB", (width * scale, height * scale), PAPER)
        draw, line = self._draw.Draw(large), [tuple(p) for p in (points.T * scale).tolist()]
        if len(line) > 1:
            draw.line(line, fill=GREEN, width=max(scale, round(u / 8 * scale)), joint="curve")
        (end_x, end_y), r = line[-1], 0.22 * u * scale
        draw.ellipse([end_x - r, end_y - r, end_x + r, end_y + r], fill=GREEN)
        small = large.resize((width, height), self._image.Resampling.BOX)
        self._picture.paste(small, (round(box[0]), round(box[1])))

    def _label(self, y: float, text: str) -> None:
        self._text((self._left, y), self._cut(text, 17), 0.85, MUTED)

    def _text(
        self, at: tuple[float, float], text: str, size: float, color: Any, anchor: str = "la"
    ) -> None:
        """Text of a size in units. Where a font lacks a character, it has a box for it."""
        font = self._load_font(round(size * self._unit))
        self._on.text(at, text, fill=color, font=font, anchor=anchor)

    def _cut(self, text: str, width: float) -> str:
        """As much of a text as fits into a width in units."""
        font, room = self._load_font(round(self._unit)), width * self._unit
        if font.getlength(text) <= room:
            return text
        while text and font.getlength(f"{text}...") > room:
            text = text[:-1]
        return f"{text}..."


def _heading(marginals: Sequence[Marginal]) -> str:
    """What the rows below it show."""
    if all(isinstance(marginal, Choice) for marginal in marginals):
        return "action probabilities"
    if all(isinstance(marginal, Interval) for marginal in marginals):
        return "action: mean, std, chosen"
    return "action: probabilities; mean, std"


def _number(x: float) -> str:
    """Seven characters or fewer, for numbers of any size."""
    if not np.isfinite(x):
        return str(x)
    if abs(x) >= 1e6:
        return f"{x:.2g}"
    return f"{x:,.0f}" if abs(x) >= 1e4 else f"{x:.1f}" if abs(x) >= 100 else f"{x:.2f}"
