"""Arrays -> axes, in the colours and layouts of the papers; no arithmetic beyond layout."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

GROUND = "#FCFBF8"
"""Background of the paper's panels."""
GRAM = plt.get_cmap("RdBu_r")
"""Diverging colours of W_i . W_j on [-1, 1]."""
SHARED = plt.get_cmap("viridis")
"""Colours of superposition on [0, 1]: dark = a dimension of its own, yellow = shared fully."""
OUTCOMES = ListedColormap(["#f2efe6", "#e6745f", "#3f6fb5"])
"""Not represented, in superposition, a dimension of its own."""
OUTCOME_NAMES = ("not represented", "in superposition", "dedicated dimension")


def gram_matrix(ax: Axes, G: np.ndarray, b: np.ndarray) -> None:
    """W_i . W_j [n, n] as a heat map on [-1, 1], the bias [n] as a column of its own to its right."""
    n = len(b)
    ax.imshow(G, cmap=GRAM, vmin=-1, vmax=1, extent=(0, n, n, 0), interpolation="nearest")
    gap, width = 0.06 * n, max(1.0, 0.05 * n)
    ax.imshow(b[:, None], cmap=GRAM, vmin=-1, vmax=1, extent=(n + gap, n + gap + width, n, 0), interpolation="nearest")
    ax.plot([n + gap, n + gap + width, n + gap + width, n + gap, n + gap], [0, 0, n, n, 0], color="0.5", lw=0.6)
    ax.plot([0, n, n, 0, 0], [0, 0, n, n, 0], color="0.5", lw=0.6)
    ax.set(xlim=(-0.02 * n, n + gap + width + 0.02 * n), ylim=(n * 1.02, -0.02 * n), xticks=[], yticks=[])
    ax.set_aspect("equal")
    ax.axis("off")


def norm_bars(ax: Axes, norms: np.ndarray, shared: np.ndarray, dimensions: int) -> None:
    """||W_i|| [n] as bars coloured by superposition [n] on [0, 1]; a rule after feature m."""
    n = len(norms)
    ax.bar(np.arange(n) + 0.5, norms, width=0.9, color=SHARED(np.clip(shared, 0, 1)))
    ax.axvline(dimensions, color="0.4", lw=0.8, ls=":")
    ax.set(xlim=(-0.02 * n, n * 1.13), xticks=[], facecolor=GROUND)
    ax.spines[["top", "right"]].set_visible(False)


def seed_strip(ax: Axes, relative: np.ndarray, best: int) -> None:
    """Loss of each seed [seeds] relative to the best one, the best marked."""
    jitter = np.linspace(-0.25, 0.25, len(relative))
    ax.plot(jitter, relative, "o", ms=3, color="0.45", alpha=0.8, mew=0)
    ax.plot(jitter[best], relative[best], "o", ms=5, color="#c0392b", mew=0)
    ax.set(xlim=(-0.6, 0.6), xticks=[], facecolor=GROUND)
    ax.spines[["top", "right", "bottom"]].set_visible(False)


def rays(ax: Axes, W: np.ndarray, importance: np.ndarray, limit: float = 1.5) -> None:
    """Rows of W [n, 2] as rays from the origin, coloured by importance [n] relative to the largest."""
    colours = plt.get_cmap("viridis")(importance / importance.max() * 0.9)
    for w, c in zip(W, colours, strict=True):
        ax.plot([0, w[0]], [0, w[1]], color=c, lw=2, solid_capstyle="round")
        ax.plot(*w, "o", color=c, ms=6)
    ax.axhline(0, color="0.85", lw=0.6, zorder=0)
    ax.axvline(0, color="0.85", lw=0.6, zorder=0)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[-1, 0, 1], yticks=[-1, 0, 1], facecolor=GROUND)
    ax.tick_params(labelsize=7)
    ax.set_aspect("equal")
    for spine in ax.spines.values():
        spine.set(color="0.7")


def phase_map(
    ax: Axes, importance: np.ndarray, density: np.ndarray, share: np.ndarray, lines: Sequence[tuple] = ()
) -> None:
    """A phase diagram: share [density, importance, 3] of the three outcomes mixed as colours, both axes log.

    Args:
        lines: (importance, density) of boundaries to draw over it.
    """
    colours = np.clip(share @ OUTCOMES(np.arange(3))[:, :3], 0, 1)
    ax.pcolormesh(_edges(importance), _edges(density), colours, rasterized=True)
    for x, y in lines:
        ax.plot(x, y, color="k", lw=1.3)
    ax.set(xscale="log", yscale="log", xlim=_edges(importance)[[0, -1]], ylim=_edges(density)[[0, -1]])


def _edges(centres: np.ndarray) -> np.ndarray:
    """Cell edges of log-spaced centres."""
    logs = np.log(centres)
    step = logs[1] - logs[0] if len(logs) > 1 else 1.0
    return np.exp(np.concatenate([logs - step / 2, [logs[-1] + step / 2]]))


def outcome_legend(figure: Figure, **where) -> None:
    """The key of ``phase_map``'s colours."""
    patches = [plt.Rectangle((0, 0), 1, 1, fc=OUTCOMES(i), ec="0.6") for i in range(3)]
    figure.legend(patches, OUTCOME_NAMES, ncols=3, frameon=False, **where)


def colour_key(figure: Figure, ax: Axes, cmap, low: float, high: float, label: str) -> None:
    """A colour bar filling the given axes."""
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), cmap), cax=ax)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def log_line(ax: Axes, x: np.ndarray, y: np.ndarray, label: str) -> None:
    """One line over log x, dots at the points."""
    ax.plot(x, y, "o-", ms=3, lw=1.2, label=label)
    ax.set(xscale="log", facecolor=GROUND)
    ax.spines[["top", "right"]].set_visible(False)


def cosine_map(ax: Axes, cosines: np.ndarray, write: bool = False) -> AxesImage:
    """Cosines of latents with true features [F, n] as a heat map on [-1, 1], one row a latent.

    Args:
        write: whether each number is written into its cell.
    """
    image = ax.imshow(cosines, cmap=GRAM, vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
    if write:
        for (i, j), v in np.ndenumerate(cosines):
            ax.text(j, i, f"{v:.2f}", ha="center", va="center", fontsize=7, color="w" if abs(v) > 0.6 else "0.2")
    ax.tick_params(length=0)
    return image


def dots(ax: Axes, x: np.ndarray, y: np.ndarray, width: float = 0.15) -> None:
    """Points [N] beside each other where their x is the same."""
    for value in np.unique(x):
        here = x == value
        jitter = np.linspace(-width, width, here.sum()) if here.sum() > 1 else np.zeros(1)
        ax.plot(value + jitter, np.sort(y[here]), "o", ms=3, color="0.25", alpha=0.8, mew=0)


def number_map(
    ax: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    norm: Normalize,
    form: Callable[[float], str],
) -> AxesImage:
    """Values [rows, columns] as a heat map, each number in its cell as ``form`` writes it, the first row below."""
    image = ax.imshow(values, cmap=SHARED, norm=norm, interpolation="nearest", aspect="auto", origin="lower")
    for (i, j), v in np.ndenumerate(values):
        if np.isfinite(v):
            ax.text(j, i, form(v), ha="center", va="center", fontsize=8, color="k" if norm(v) > 0.6 else "w")
    ax.set(xticks=np.arange(len(columns)), yticks=np.arange(len(rows)), facecolor=GROUND)
    ax.set_xticklabels(columns, fontsize=8)
    ax.set_yticklabels(rows, fontsize=8)
    ax.tick_params(length=0)
    return image


def outline_cell(ax: Axes, row: int, column: int, colour: str, width: float) -> None:
    """A frame around one cell of a heat map."""
    ax.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, ec=colour, lw=width))


def activation_map(ax: Axes, acts: np.ndarray) -> AxesImage:
    """Activations [samples, latents] as a heat map on [0, the largest], one row a sample."""
    image = ax.imshow(acts, cmap=SHARED, vmin=0, interpolation="nearest", aspect="auto")
    ax.tick_params(length=0)
    return image


def score_bars(
    ax: Axes, values: np.ndarray, labels: Sequence[str], title: str, colours: Sequence[int] | None = None
) -> None:
    """Means of scores [kinds, seeds] as bars, a dot a seed; colours are numbers of matplotlib's cycle."""
    x = np.arange(len(values))
    cycle = x if colours is None else np.asarray(colours)
    ax.bar(x, values.mean(1), width=0.7, color=plt.get_cmap("tab10")(cycle % 10), alpha=0.75)
    dots(ax, np.repeat(x, values.shape[1]).astype(float), values.reshape(-1))
    ax.set(xticks=x, title=title, facecolor=GROUND)
    ax.set_xticklabels(labels, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def names(ax: Axes, x: np.ndarray, y: np.ndarray, texts: Sequence[str]) -> None:
    """Names beside points, from the lowest up, each moved up as far as the one below it needs."""
    low, high = ax.get_ylim()
    step, last = (high - low) / 38, -np.inf
    for i in np.argsort(y):
        last = max(y[i], last + step)
        ax.annotate(
            texts[i], (x[i], y[i]), (x[i] + 0.03, last), fontsize=7, va="center",
            arrowprops={"arrowstyle": "-", "color": "0.7", "lw": 0.5},
        )  # fmt: skip


def plain(axes: Iterable[Axes]) -> None:
    """The ground of every picture, and no frame above and to the right."""
    for ax in axes:
        ax.set_facecolor(GROUND)
        ax.spines[["top", "right"]].set_visible(False)


def interval_bars(ax: Axes, kinds: Sequence[str], groups: Mapping[str, tuple[np.ndarray, str]]) -> None:
    """Bars side by side for each kind, with intervals.

    Args:
        kinds: what stands below them.
        groups: what the legend says -> values [kinds, 3] as (value, low, high), and their colour.
    """
    x, width = np.arange(len(kinds)), 0.8 / len(groups)
    for i, (label, (values, colour)) in enumerate(groups.items()):
        place = x + width * (i - (len(groups) - 1) / 2)
        ax.bar(place, values[:, 0], 0.95 * width, color=colour, alpha=0.8, label=label)
        ax.errorbar(place, values[:, 0], np.abs(values[:, 1:].T - values[:, 0]), fmt="none", color="0.2", lw=0.8)
    ax.set_xticks(x, kinds, fontsize=8)


def training_line(ax: Axes, steps: np.ndarray, loss: np.ndarray, levels: Mapping[str, float]) -> None:
    """The loss of a language model by step, and levels to compare it with, their values in the legend."""
    ax.plot(steps, loss, color="#3f6fb5", lw=1.4, label="training text")
    for (name, level), colour in zip(levels.items(), ("#c4462f", "0.4", "0.7"), strict=False):
        ax.axhline(level, color=colour, lw=1, ls="--", label=f"{name}: {level:.2f}")
    ax.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
    ax.legend(fontsize=8, frameon=False)
