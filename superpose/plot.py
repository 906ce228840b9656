"""Arrays -> axes, in the colours and layouts of the papers; no arithmetic beyond layout."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import BboxBase

GROUND = "#FCFBF8"
"""Background of the paper's panels."""
GRAM = plt.get_cmap("RdBu_r")
"""Diverging colours of W_i . W_j on [-1, 1]."""
SHARED = plt.get_cmap("viridis")
"""Colours of superposition on [0, 1]: dark = a dimension of its own, yellow = shared fully."""
OUTCOMES = ListedColormap(["#f2efe6", "#e6745f", "#3f6fb5"])
"""Not represented, in superposition, a dimension of its own."""
WARM, COOL = "#c4462f", "#3f6fb5"
DENSER = plt.get_cmap("cividis")
"""Blue = sparser or less important, yellow = denser or more important."""
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


def blocks(ax: Axes, ends: np.ndarray, n: int) -> None:
    """Lines between the sets of features of ``gram_matrix``."""
    for end in ends:
        ax.plot([end, end], [0, n], color="0.35", lw=0.8)
        ax.plot([0, n], [end, end], color="0.35", lw=0.8)


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
    ax.plot(jitter[best], relative[best], "o", ms=5, color="#c0392b", mew=0, clip_on=False)
    ax.set(xlim=(-0.6, 0.6), xticks=[], facecolor=GROUND)
    ax.spines[["top", "right", "bottom"]].set_visible(False)


def rays(ax: Axes, W: np.ndarray, importance: np.ndarray, limit: float = 1.5) -> None:
    """Rows of W [n, 2] as rays from the origin, coloured by importance [n] relative to the largest."""
    colours = plt.get_cmap("viridis")(importance / importance.max() * 0.9)
    for w, c in zip(W, colours, strict=True):
        ax.plot([0, w[0]], [0, w[1]], color=c, lw=2, solid_capstyle="round")
        ax.plot(*w, "o", color=c, ms=6)
    square(ax, limit)


def paired_rays(ax: Axes, W: np.ndarray, owner: np.ndarray, limit: float = 1.6) -> None:
    """Rows of W [n, 2] as rays from the origin, a colour a set [n], numbered from 1; rows that end at one place share a
    label."""
    said = np.zeros(len(W), bool)
    for i, (w, s) in enumerate(zip(W, owner, strict=True)):
        colour = plt.get_cmap("tab10")(int(s))
        ax.plot([0, w[0]], [0, w[1]], color=colour, lw=2, solid_capstyle="round")
        ax.plot(*w, "o", color=colour, ms=5)
        if (length := np.hypot(*w)) > 0.2 and not said[i]:
            here = np.hypot(*(W - w).T) < 0.1 * limit
            said |= here
            ax.text(
                w[0] * (1 + 0.25 / length),
                w[1] * (1 + 0.25 / length),
                ", ".join(str(j + 1) for j in np.flatnonzero(here)),
                fontsize=6,
                ha="center",
                va="center",
                color="0.3",
            )
    square(ax, limit)


def solutions(ax: Axes, W: np.ndarray, value: np.ndarray, all_values: np.ndarray, limit: float = 1.5) -> None:
    """Solutions [k, n, 2] over each other, a colour each by the logarithm of its value [k] among all values."""
    norm = LogNorm(all_values.min(), all_values.max())
    for rows, v in zip(W, value, strict=True):
        colour = DENSER(norm(v))
        for w in rows:
            ax.plot([0, w[0]], [0, w[1]], color=colour, lw=0.8, alpha=0.7)
        ax.plot(rows[:, 0], rows[:, 1], "o", color=colour, ms=4, mew=0)
        ax.plot(*rows[0], "o", mfc="none", mec="0.2", ms=6, mew=0.6)
    square(ax, limit)


def square(ax: Axes, limit: float) -> None:
    """The plane around the origin, both axes alike."""
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


def colour_key(figure: FigureBase, ax: Axes, cmap, low: float, high: float, label: str) -> None:
    """A colour bar filling the given axes."""
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), cmap), cax=ax)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def log_key(figure: FigureBase, ax: Axes, cmap, low: float, high: float, label: str) -> None:
    """A lying colour bar with a log scale, filling the given axes."""
    bar = figure.colorbar(ScalarMappable(LogNorm(low, high), cmap), cax=ax, orientation="horizontal")
    bar.set_label(label, fontsize=8)
    plain_ticks(
        bar.ax.xaxis,
        [v * 10.0**k for k in range(-6, 7) for v in (1, 2, 4) if 0.999 * low <= v * 10.0**k <= 1.001 * high],
    )
    bar.ax.tick_params(labelsize=7)


def plain_ticks(axis: Axis, values: Iterable[int | float]) -> None:
    """Marks at these values alone, written without powers of ten."""
    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def weights(ax: Axes, W: np.ndarray) -> None:
    """W [n, m] on [-1, 1], a row a feature, a column a neuron."""
    ax.imshow(W, cmap=GRAM, vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
    ax.set(xticks=np.arange(W.shape[1]), yticks=np.arange(0, len(W), max(1, len(W) // 10)))
    ax.tick_params(labelsize=7, length=0)


def neuron_bars(ax: Axes, W: np.ndarray, shared: np.ndarray) -> None:
    """Weights of every neuron [neurons, n] as stacked bars, those below 0 downwards, coloured by how much each feature
    is in superposition [n]."""
    colours = SHARED(np.clip(shared, 0, 1))
    for j, row in enumerate(W):
        up = down = 0.0
        for i in np.argsort(-np.abs(row)):
            if abs(row[i]) > 0.02:
                at = up if row[i] > 0 else down
                ax.bar(j, row[i], 0.75, bottom=at, color=colours[i], ec="w", lw=0.5)
                up, down = (up + row[i], down) if row[i] > 0 else (up, down + row[i])
    ax.axhline(0, color="0.4", lw=0.7)
    ax.set(xlim=(-0.6, len(W) - 0.4), xticks=np.arange(len(W)), facecolor=GROUND)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def neuron_stack(ax: Axes, W: np.ndarray, shared: np.ndarray, poly: np.ndarray) -> None:
    """|W| of every neuron [neurons, n] as a stacked bar, largest weights below, coloured by the feature's superposition
    [n]; the ground behind a neuron is the redder the more polysemantic it is, ``poly`` [neurons] on [0, 1]."""
    colours = SHARED(np.clip(shared, 0, 1))
    for j, row in enumerate(W):
        ax.axvspan(j - 0.5, j + 0.5, color=WARM, alpha=0.35 * float(poly[j]), lw=0)
        at = 0.0
        for i in np.argsort(-row):
            if row[i] > 0.02:
                ax.bar(j, row[i], 0.8, bottom=at, color=colours[i], ec="w", lw=0.3)
                at += row[i]
    ax.set(xlim=(-0.6, len(W) - 0.4), xticks=[], facecolor=GROUND)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def circuit(ax: Axes, W_in: np.ndarray, W_out: np.ndarray, features: Sequence[str], neurons: Sequence[str]) -> None:
    """Inputs, neurons and outputs as three columns: W_in [neurons, features], W_out [features, neurons], written at the
    edges; positive weights red, negative ones blue."""
    place = {k: np.linspace(0.8, 0.1, len(names)) for k, names in (("f", features), ("h", neurons))}
    for j, h in enumerate(place["h"]):
        for i, f in enumerate(place["f"]):
            for x0, y0, x1, y1, w in ((0.0, f, 0.5, h, W_in[j, i]), (0.5, h, 1.0, f, W_out[i, j])):
                if abs(w) > 0.05:
                    ax.plot(
                        [x0, x1],
                        [y0, y1],
                        color=WARM if w > 0 else COOL,
                        lw=0.6 + 1.4 * min(2.5, abs(w)),
                        alpha=0.8,
                        zorder=1,
                    )
                    t = 0.5 if i == j else 0.3
                    ax.text(x0 + t * (x1 - x0), y0 + t * (y1 - y0), f"{w:+.2f}", fontsize=8, ha="center", va="center",
                            zorder=3, bbox={"fc": "w", "ec": "none", "pad": 0.6})  # fmt: skip
    for x, names, ys in (
        (0.0, features, place["f"]),
        (0.5, neurons, place["h"]),
        (1.0, [f"|{f}|" for f in features], place["f"]),
    ):
        for name, y in zip(names, ys, strict=True):
            ax.plot(x, y, "o", ms=9, color="0.3", zorder=2)
            ax.text(x, y - 0.16 if y == ys[-1] else y + 0.11, name, fontsize=8, ha="center")
    ax.set(xlim=(-0.12, 1.12), ylim=(-0.1, 1))
    ax.axis("off")


def _near(D: np.ndarray, lines: Mapping[str, float], width: float = 0.02) -> list:
    """A colour for each dimensionality: that of the line within ``width``, grey where there is none."""
    colours = plt.get_cmap("Dark2")(np.arange(len(lines)))
    places = np.asarray(list(lines.values()))
    return [colours[gap.argmin()] if (gap := np.abs(places - d)).min() < width else (0.7, 0.7, 0.7, 1.0) for d in D]


def dimensionalities(ax: Axes, x: np.ndarray, D: np.ndarray, lines: Mapping[str, float]) -> None:
    """D_i [models, n] of every feature as a dot over x [models] (log), spread sideways, and named lines."""
    step = np.log(x[1] / x[0]) if len(x) > 1 else 0.1
    spread = np.exp(np.random.default_rng(0).uniform(-0.35, 0.35, D.shape) * step)
    ax.scatter((x[:, None] * spread).ravel(), D.ravel(), s=1.2, color="k", lw=0, alpha=0.6, rasterized=True)
    values = np.asarray(list(lines.values()))
    for colour, (name, value) in zip(_near(values, lines), lines.items(), strict=True):
        ax.axhline(value, color=colour, lw=1, alpha=0.8, zorder=0)
        near = values[(values != value) & (np.abs(values - value) < 0.03)]  # whose names would touch
        apart = (0, 4 * np.sign(value - near[0]) if len(near) else 0)
        ax.annotate(name, (1.005, value), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=colour,
                    xytext=apart, textcoords="offset points")  # fmt: skip
    ax.set(xscale="log", ylim=(-0.03, 1.05))


def shape_graph(
    ax: Axes,
    W: np.ndarray,
    parts: Sequence[Sequence[int]],
    D: np.ndarray,
    lines: Mapping[str, float],
    edge: float,
    across: float = 16.0,
) -> None:
    """Features as nodes, |W_i . W_j| above ``edge`` as edges, each component a ring of its own, large ones first.

    Args:
        W: [k, m], the features that are shown.
        parts: components, each a list of rows of W.
        D: [k], dimensionalities, which colour the nodes as ``dimensionalities`` colours its lines.
        across: width of a row of rings, in units of the distance between two nodes of one.
    """
    colours, strength = _near(D, lines), np.abs(W @ W.T)
    left = top = deep = 0.0
    for part in sorted(parts, key=len, reverse=True):
        radius = 0.0 if len(part) == 1 else min(across / 2, 0.5 / np.sin(np.pi / max(2, len(part))))
        if left + 2 * radius > across:
            left, top, deep = 0.0, top - deep - 0.9, 0.0
        deep = max(deep, 2 * radius)
        angle = np.pi / 2 + 2 * np.pi * np.arange(len(part)) / len(part)
        flat, rows = np.stack([np.cos(angle), np.sin(angle)], 1), W[list(part)]
        if len(part) > 2:  # around the ring in the order in which they stand in their first two components
            u, s, _ = np.linalg.svd(rows, full_matrices=False)
            order = np.argsort(np.arctan2(u[:, 1] * s[1], u[:, 0] * s[0])) if len(s) > 1 else np.arange(len(part))
            part = [part[i] for i in order]
        place = [left + radius, top - radius] + radius * flat
        for i in range(len(part)):
            for j in range(i):
                if (s := strength[part[i], part[j]]) > edge:
                    ax.plot(*place[[i, j]].T, color="0.45", lw=0.4 + 0.8 * min(1.0, s), alpha=min(1.0, s), zorder=1)
        ax.scatter(place[:, 0], place[:, 1], s=7, color=[colours[i] for i in part], lw=0, zorder=2)
        left += 2 * radius + 0.9
    ax.set_aspect("equal", anchor="N")
    ax.set(xlim=(-0.5, across + 0.5), ylim=(min(-0.6 * across, top - deep) - 0.5, 0.8))
    ax.axis("off")


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
    """Names near points, each at the place around its point (the nearest, on ties) where it covers the fewest of the
    scattered points, of the names to the right and of the legend, and keeps away from others' points. Places are
    measured on the figure as it stands: this call comes last."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    points = ax.transData.transform(np.concatenate([c.get_offsets() for c in ax.collections]))
    legend = ax.get_legend()
    taken: list[BboxBase] = [] if legend is None else [legend.get_window_extent()]
    pixels, frame = figure.dpi / 72, ax.get_window_extent()
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for i in np.argsort(-x):
        text = ax.annotate(texts[i], (x[i], y[i]), (0, 0), textcoords="offset points", fontsize=7, ha="center",
                           va="center", arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.5})  # fmt: skip
        box = text.get_window_extent().padded(1.5 * pixels)
        half = np.array([box.width, box.height]) / 2
        offsets = np.concatenate([around * (gap * pixels + half) for gap in (6, 12, 20, 30)])
        boxes = [box.translated(*offset) for offset in offsets]
        covered = [
            there.count_contains(points) + 0.3 * there.padded(3.5 * pixels).count_contains(points)
            + 2 * sum(there.overlaps(other) for other in taken)
            + 3 * (not all(frame.contains(*corner) for corner in there.corners()))
            for there in boxes
        ]  # fmt: skip
        best = int(np.argmin(covered))
        text.set_position(tuple(offsets[best] / pixels))
        taken.append(boxes[best])


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
