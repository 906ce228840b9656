"""Explanations without a judge: the simple predicate that says best on which tokens a latent is on.

Candidates are sets of tokens, of the tokens before, of pairs and triples of tokens, regular expressions that a token's
text matches, the labels of the corpus (script, kind of Python token, ...) and places in the text. Each is chosen on the
documents of even number and scored on those of odd number, over all tokens and not only those where the latent is on:
precision is the share of the predicate's tokens on which the latent is on, recall the share of the latent's tokens that
it covers. The same procedure for neurons, random directions and shuffled latents says what such a score is worth.

Sets have many members to choose and labels none, so F1 on what they were chosen on would favour sets. Each kind of
predicate is therefore chosen on one half of the documents of even number and held against the others on the other half;
the best kind is then chosen anew on both.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import sparse, stats

from superpose.interp.labels import Resampling, first_half
from superpose.lm.text import written

PLACES = (1, 4, 16)
"""Predicates of place: among the first so many tokens of the document."""
PATTERNS = {
    "digits": r"\s*\d+", "lower-case letters": r"\s*[a-z]+", "a capitalised word": r"\s*[A-Z][a-z]+",
    "capitals": r"\s*[A-Z]{2,}", "punctuation": r"\s*[^\w\s]+", "white space": r"\s+", "a line break": r"\s*\n\s*",
    "a word after a space": r" \w+", "bytes of no whole character": r"(?:\\x[0-9a-f]{2})+",
    "Latin letters": r"\s*[A-Za-z\u00c0-\u024f]+", "Greek": r"\s*[\u0370-\u03ff]+", "Cyrillic": r"\s*[\u0400-\u04ff]+",
    "Hebrew": r"\s*[\u0590-\u05ff]+", "Arabic": r"\s*[\u0600-\u06ff]+", "Devanagari": r"\s*[\u0900-\u097f]+",
    "Thai": r"\s*[\u0e00-\u0e7f]+", "kana": r"\s*[\u3040-\u30ff]+", "Hangul": r"\s*[\uac00-\ud7af]+",
    "Chinese characters": r"\s*[\u4e00-\u9fff]+",
}  # fmt: skip
"""name -> regular expression that a token's whole text matches (bytes of no character written \\xff)."""
SEEN = 3
"""Members of a set must occur so often where it is chosen: those that occur once are right or wrong by chance."""
NEARLY = 0.95
"""Of predicates that reach this share of the best F1, the one of fewest members is chosen: it is there to be read."""
SHOWN = 6
"""Members of a set that its text names."""
FEW = 16
"""Where there are fewer documents, contexts are halved in their place: chance would choose among so few."""
FAMILIES = {
    "token": "the token is", "token before": "the token before is", "label": "", "pair": "the last two tokens say",
    "triple": "the last three tokens say",
}  # fmt: skip
"""Kinds of predicates, and how their texts begin; of equals the first is taken."""
VISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍", "\0": "␀"}


class Tokens:
    """What candidates are made of, for every row [N] of ``codes.Codes``.

    Where there are fewer than ``FEW`` documents, or none in one of the halves, contexts are halved in their place.

    Args:
        contexts: ``lm.text.Contexts``, with labels where there are any.
        labels: their names.
        special: ids of tokens that were left out.
        first: so many at the start of each context were left out.
        pieces: bytes of each token; without them predicates name tokens by their ids, and no pattern is tried.
        patterns: name -> regular expression.

    Attributes:
        halves: what is halved, "documents" or "contexts".
        keep, fit, score: [N], tokens that were not left out; those that predicates are chosen on, and scored on.
        rival: [N], tokens of ``fit`` that kinds of predicates, chosen on its others, are held against each other on.

    Raises:
        ValueError: there are no tokens in one of the halves.
    """

    def __init__(
        self,
        contexts: Any,
        labels: Sequence[str] = (),
        special: Sequence[int] = (),
        first: int = 0,
        pieces: Sequence[bytes] = (),
        patterns: Mapping[str, str] = PATTERNS,
    ):
        n, C = contexts.tokens.shape
        place = np.broadcast_to(np.arange(C), (n, C))
        self.ids = contexts.tokens.reshape(-1)
        self.keep = (contexts.mask & ~np.isin(contexts.tokens, special) & (place >= first)).reshape(-1)
        halves = first_half(contexts.documents)
        few = len(np.unique(contexts.documents)) < FEW or halves.all() or not halves.any()
        halves = first_half(np.arange(n)) if few else halves
        self.halves = "contexts" if few else "documents"
        self.fit = np.repeat(halves, C) & self.keep
        self.score = self.keep & ~self.fit
        turn = np.unique(contexts.documents[halves], return_inverse=True)[1].reshape(-1)
        rival = np.zeros(n, bool)
        rival[halves] = (np.arange(halves.sum()) if few else turn) % 2 == 0
        self.rival = np.repeat(rival, C) & self.fit
        if not self.fit.any() or not self.score.any():
            raise ValueError("explanations are chosen on one half of the documents and scored on the other: give more")
        self._contexts, self._labels = contexts, tuple(labels)
        self._pieces, self._patterns = pieces, patterns

    @cached_property
    def families(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """name -> a number for each row, equal where the tokens are [N], and the first row of each number."""
        ids = self._contexts.tokens.astype(np.int64)
        size = int(ids.max()) + 2
        before = np.pad(ids + 1, ((0, 0), (1, 0)))[:, :-1]  # 0 at the start of a context
        second = np.pad(ids + 1, ((0, 0), (2, 0)))[:, :-2]
        pair = before * size + ids
        raw = {"token": ids, "token before": before, "pair": pair, "triple": second * size * size + pair}
        found = {name: np.unique(key, return_index=True, return_inverse=True) for name, key in raw.items()}
        return {name: (number.reshape(-1), first) for name, (_, first, number) in found.items()}

    @cached_property
    def _parts(self) -> tuple[np.ndarray, ...]:
        """[N] each: where kinds of predicates are chosen, are held against each other, both, where they are scored."""
        return self.fit & ~self.rival, self.rival, self.fit, self.score

    @cached_property
    def _hot(self) -> dict[str, list[sparse.csr_array]]:
        """Of each family, for the first two parts: rows by members."""
        return {
            name: [
                sparse.csr_array((np.ones(len(rows)), (rows, key[rows])), shape=(len(key), len(firsts)))
                for rows in map(np.flatnonzero, self._parts[:2])
            ]
            for name, (key, firsts) in self.families.items()
        }

    @cached_property
    def _totals(self) -> dict[str, list[np.ndarray]]:
        """Of each family, for each part: how often each member occurs."""
        return {
            name: [np.bincount(key[part], minlength=len(firsts)) for part in self._parts]
            for name, (key, firsts) in self.families.items()
        }

    def by_group(self, again: Resampling) -> dict[str, Any]:
        """Of each family and of the predicates: how often each member occurs in each group where they are scored."""
        rows, G = np.flatnonzero(self.score), again.weights.shape[1]
        place, one = again.group[rows], np.ones(len(rows), np.float32)
        found = {
            name: sparse.csr_array((one, (place, key[rows])), shape=(G, len(firsts))).tocsc()
            for name, (key, firsts) in self.families.items()
        }
        inside = sparse.csr_array((one, (place, rows)), shape=(G, len(self.ids)))
        return found | {"label": (inside @ self.predicates[1]).toarray()}

    @cached_property
    def predicates(self) -> tuple[list[str], sparse.csc_array]:
        """Names, and [N, P], where each holds: places, patterns and labels."""
        starts = self._contexts.starts[:, None] + np.arange(self._contexts.tokens.shape[1])
        names = [f"among the first {k} tokens" if k > 1 else "the first token" for k in PLACES]
        columns = [np.flatnonzero((starts.reshape(-1) < k) & self.keep) for k in PLACES]
        if self._pieces:
            texts = [written(piece) for piece in self._pieces]
            for name, pattern in self._patterns.items():
                whole = re.compile(pattern)
                matches = np.array([bool(text) and whole.fullmatch(text) is not None for text in texts])
                if matches.any():
                    columns.append(np.flatnonzero(matches[self.ids] & self.keep))
                    names.append(f"the token is {name}")
        if self._labels:
            packed = self._contexts.labels.reshape(len(self.ids), -1)
            for i, name in enumerate(self._labels):
                bit = (packed[:, i // 8] >> (7 - i % 8)) & 1
                columns.append(np.flatnonzero(bit.astype(bool) & self.keep))
                names.append(name)
        ends = np.concatenate([[0], np.cumsum([len(c) for c in columns])])
        rows = np.concatenate(columns) if columns else np.zeros(0, int)
        shape = (len(self.ids), len(columns))
        return names, sparse.csc_array((np.ones(len(rows), np.float32), rows, ends), shape=shape)


class Explanations(NamedTuple):
    """The best predicate of each unit [U].

    Attributes:
        kind: family of the predicate; "" where the unit is silent in the first half.
        text: the predicate in words.
        chosen_f1: on the half that it was chosen on.
        precision, recall, f1: on the other half. Precision is NaN where the predicate holds nowhere there, recall where
            the unit is on nowhere there, both where the unit is silent in the first half; F1 is 0 in all these cases.
        members: that a set has; 1 of other predicates.
        named_f1: of the members alone that the text names, on the other half.
        auroc: of the activation, for tokens at which the predicate holds against the others, there; silence ties. NaN
            where the predicate holds nowhere or everywhere.
        tokens: on which the unit is on, in both halves.
        single: whether the 20 largest activations are all on one token (fewer than 20 are compared with each other).
        draws: F1 in resamplings of the other half's documents; none where ``explain`` was given none.
    """

    kind: np.ndarray
    text: np.ndarray
    chosen_f1: Float[np.ndarray, " U"]
    precision: Float[np.ndarray, " U"]
    recall: Float[np.ndarray, " U"]
    f1: Float[np.ndarray, " U"]
    members: np.ndarray
    named_f1: Float[np.ndarray, " U"]
    auroc: Float[np.ndarray, " U"]
    tokens: np.ndarray
    single: np.ndarray
    draws: Float[np.ndarray, "U draws"]


def _f1(hits: Any, said: Any, true: Any) -> Any:
    return 2 * hits / np.maximum(said + true, 1e-30)


def single_token(ids: np.ndarray, values: np.ndarray) -> bool:
    """Whether a unit's 20 largest activations (two at least) are all on one token.

    Args:
        ids: [n], token at each place where the unit is on.
        values: [n], its activations there.
    """
    top = ids[np.argsort(-values, kind="stable")[:20]]
    return len(top) > 1 and bool((top == top[0]).all())


def _auroc(values: np.ndarray, holds: np.ndarray, positives: int, negatives: int) -> float:
    """Of values that are 0 but at some tokens; ``holds`` says of those whether they are positives."""
    if not positives or not negatives:
        return float("nan")
    hits, below = int(holds.sum()), values < 0  # of signed latents: silence lies between
    silent = negatives - (len(values) - hits)
    loud = stats.rankdata(values)[holds].sum() - hits * (hits + 1) / 2  # loud positives against loud negatives
    wins = loud + (holds & ~below).sum() * silent + (positives - hits) * (0.5 * silent + (below & ~holds).sum())
    return float(wins / (positives * negatives))


def _set(members: np.ndarray, hits: np.ndarray, totals: np.ndarray, active: float) -> tuple[np.ndarray, np.ndarray]:
    """Of members that a unit is on at so many times, those that say together when it is on, and their hits: of the set
    with the highest F1 those with the most hits, as few as say it nearly as well."""
    common = totals[members] >= SEEN
    members, hits = members[common], hits[common]
    if not len(members):
        return members, hits
    order = np.argsort(-hits / totals[members], kind="stable")
    members, hits = members[order], hits[order]
    f1 = _f1(np.cumsum(hits), np.cumsum(totals[members]), active)
    best = int(f1.argmax()) + 1
    order = np.argsort(-hits[:best], kind="stable")
    members, hits = members[order], hits[order]
    again = _f1(np.cumsum(hits), np.cumsum(totals[members]), active)
    cut = int((again >= NEARLY * f1.max()).argmax()) + 1
    return members[:cut], hits[:cut]


def explain(units: sparse.csc_array, tokens: Tokens, again: Resampling | None = None) -> Explanations:
    """The best predicate of each unit.

    Args:
        units: [N, U], what units say of every row, 0 where they are silent; ``codes.Codes.block`` gives such.
        tokens: the rows.
        again: resamplings of the rows' documents.
    """
    N, U = units.shape
    G = 0 if again is None else again.weights.shape[1]
    weights = np.zeros((0, 0), int) if again is None else again.weights
    groups = np.zeros(N, int) if again is None else again.group
    said_by_group = tokens.by_group(again) if again is not None else {}
    if len(tokens.ids) != N:
        raise ValueError(f"the units speak of {N} tokens and {len(tokens.ids)} are given")
    on = sparse.csc_array((np.ones(units.nnz), units.indices, units.indptr), shape=units.shape).T.tocsr()
    counts = {name: [on @ one for one in hot] for name, hot in tokens._hot.items()}
    for one in counts.values():
        one.append(one[0] + one[1])
    names, held = tokens.predicates
    parts = [held.multiply(part[:, None]).tocsc() for part in tokens._parts]
    by_label = [(on @ part).toarray() for part in parts]
    label_totals = [part.sum(0) for part in parts]
    active = np.stack([on @ part for part in tokens._parts])
    label_f1 = [_f1(hits, totals, n[:, None]) for hits, totals, n in zip(by_label, label_totals, active, strict=True)]
    both, last = 2, 3
    everywhere = int(tokens.score.sum())
    out: list[tuple] = []

    def members(u: int, family: str, part: int) -> tuple[np.ndarray, np.ndarray]:
        found, totals = counts[family][part], tokens._totals[family][part]
        where = slice(found.indptr[u], found.indptr[u + 1])
        return _set(found.indices[where], found.data[where], totals, active[part, u])

    def rival(u: int, family: str, here: int, there: int) -> tuple[float, int]:
        """F1 ``there`` of the predicate that was chosen ``here``, and how many members it names."""
        if family == "label":
            return float(label_f1[there][u, label_f1[here][u].argmax()]), 1
        chosen = members(u, family, here)[0]
        totals, found = tokens._totals[family][there], counts[family][there]
        where = slice(found.indptr[u], found.indptr[u + 1])
        hits = found.data[where][np.isin(found.indices[where], chosen)].sum()
        return float(_f1(hits, totals[chosen].sum(), active[there, u])), len(chosen)

    for u in range(U):
        where = slice(units.indptr[u], units.indptr[u + 1])
        rows, values = units.indices[where], units.data[where]
        single = single_token(tokens.ids[rows], values)
        if not active[both, u]:
            nan = float("nan")
            silence = np.zeros(len(weights))
            out.append(("", "", 0.0, nan, nan, 0.0, 0, 0.0, nan, len(rows), single, silence))
            continue
        here, there = (0, 1) if active[0, u] and active[1, u] else (both, both)
        rivals = {family: rival(u, family, here, there) for family in ("label", *counts)}
        good = NEARLY * max(f1 for f1, _ in rivals.values())
        good_ones = (family for family in FAMILIES if rivals[family][1] and rivals[family][0] >= good)
        family = min(good_ones, key=lambda name: (rivals[name][1], -rivals[name][0]))
        inside = tokens.score[rows]
        scored = rows[inside]
        if family == "label":
            i = int(label_f1[both][u].argmax())
            text, chosen_f1, said = names[i], float(label_f1[both][u, i]), label_totals[last][i]
            holds = np.isin(scored, parts[last].indices[parts[last].indptr[i] : parts[last].indptr[i + 1]])
            size, named_f1 = 1, float(_f1(holds.sum(), said, active[last, u]))
            each = said_by_group["label"][:, i] if G else np.zeros(0)
        else:
            chosen, hits = members(u, family, both)
            totals = tokens._totals[family]
            chosen_f1 = float(_f1(hits.sum(), totals[both][chosen].sum(), active[both, u]))
            among = np.zeros(len(totals[last]), bool)
            among[chosen] = True
            where = tokens.families[family][0][scored]
            said, holds = totals[last][chosen].sum(), among[where]
            size, named = len(chosen), chosen[:SHOWN]
            each = said_by_group[family][:, chosen].sum(1) if G else np.zeros(0)
            named_f1 = float(_f1(np.isin(where, named).sum(), totals[last][named].sum(), active[last, u]))
            text = _text(family, named, size, tokens)
        right = int(holds.sum())
        auroc = _auroc(values[inside], holds, int(said), everywhere - int(said))
        shares = [right / n if n else float("nan") for n in (said, active[last, u])]
        f1 = float(_f1(right, said, active[last, u]))
        true, hits = (np.bincount(groups[some], minlength=G)[:G] for some in (scored, scored[holds]))
        draws = _f1(weights @ hits, weights @ each, weights @ true)
        out.append((family, text, chosen_f1, *shares, f1, size, named_f1, auroc, len(rows), single, draws))
    return Explanations(*(np.array(column) for column in zip(*out, strict=True)))


def _text(family: str, shown: np.ndarray, size: int, tokens: Tokens) -> str:
    firsts, C = tokens.families[family][1], tokens._contexts.tokens.shape[1]
    back = {"token": 0, "token before": 1, "pair": 1, "triple": 2}[family]
    last = 1 if family == "token before" else 0
    words = []
    for member in shown:
        row = int(firsts[member])
        start = max(row - back, row // C * C)
        ids = tokens.ids[start : row + 1 - last]
        parts = [tokens._pieces[i] or f"⟨{i}⟩".encode() for i in ids] if tokens._pieces else [b"<%d>" % i for i in ids]
        said = "⟨start⟩" * (start > row - back) + written(b"".join(parts))
        said = "".join(c if c.isprintable() else VISIBLE.get(c, f"\\u{ord(c):04x}") for c in said)
        words.append(f'"{said}"' if "'" in said else f"'{said}'")
    more = f" and {size - len(words)} more" if size > len(words) else ""
    return f"{FAMILIES[family]} {', '.join(words)}{more}"


# --- baselines --------------------------------------------------------------------------------------------------------


def loudest(values: Float[np.ndarray, "N U"], keep: np.ndarray, density: Any) -> sparse.csc_array:
    """Dense units (neurons, directions) as ones that are on at so large a share of the tokens, where they are largest.

    So a neuron is held against a latent of the same density.

    Args:
        keep: [N], tokens that were not left out.
        density: one share, or one for each unit [U].

    >>> loudest(np.array([[1.0], [3.0], [2.0], [0.0]]), np.ones(4, bool), 0.5).toarray().ravel().tolist()
    [0.0, 3.0, 2.0, 0.0]
    """
    total, U = int(keep.sum()), values.shape[1]
    wanted = np.clip(np.round(np.broadcast_to(density, U) * total).astype(int), 1, total)
    ranked = -np.sort(-values[keep], axis=0)
    cut = ranked[wanted - 1, np.arange(U)]
    return sparse.csc_array(np.where((values >= cut) & keep[:, None] & (values > 0), values, 0))


def shuffled(units: sparse.csc_array, keep: np.ndarray, seed: int) -> sparse.csc_array:
    """The same activations on other tokens: what a unit of this density gets by chance."""
    places = np.flatnonzero(keep)
    moved = np.arange(units.shape[0])
    moved[places] = np.random.default_rng(seed).permutation(places)
    return sparse.csc_array((units.data, moved[units.indices], units.indptr), shape=units.shape).sorted_indices()
