"""Language models as configs state them: a corpus, a tokenizer, contexts of two splits, a trained or a read model."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from experiments import check
from superpose.lm import checkpoints, objective, python_source, scripts, text
from superpose.lm.transformer import Config, Transformer, generate
from superpose.train.checkpoint import write_atomically
from superpose.train.fit import fit
from superpose.train.progress import say


class Texts(NamedTuple):
    """A corpus, its tokenizer, and the contexts that are trained on and held out, each with documents from 0."""

    corpus: text.Corpus
    digest: str
    tokenizer: text.Tokenizer
    train: text.Contexts
    held: text.Contexts


def corpus(c: Any) -> text.Corpus:
    """What ``c.corpus`` states: a kind of ``configs.corpus``, and its values.

    Raises:
        ValueError: an unknown kind, a corpus that can't be read, or other texts than its digest says.
    """
    found = _corpus(c)
    if c.digest and (digest := found.digest()) != c.digest:
        raise ValueError(
            f"the texts of {found.name} hash to {digest} and the config asks for {c.digest}: these are other "
            "texts (other values of corpus, other files, another version of Python); --config.corpus.digest= takes them"
        )
    return found


def _corpus(c: Any) -> text.Corpus:
    match c.kind:
        case "python source":
            modules = python_source.MODULES if not c.modules else tuple(c.modules)
            return python_source.python_source(modules)
        case "scripts":
            check.whole(c, "documents")
            return scripts.scripts(c.documents, c.seed, tuple(c.get("rare", ())), c.get("weight", 1.0))
        case "files":
            return text.from_files(c.path, c.pattern, c.separator)
        case "dataset":
            check.whole(c, "documents")
            return text.from_datasets(c.path, column=c.column, documents=c.documents)
    raise ValueError(f"unknown kind of corpus {c.kind!r}: choose python source, scripts, files or dataset")


def texts(c: Any, workdir: Path, tokenizer: text.Tokenizer | None = None, labels: bool = False) -> Texts:
    """Tokens of the corpus; every ``c.hold``-th document is held out.

    A tokenizer that is trained here is kept in the work directory, for whoever goes on with the model.
    """
    check.whole(c, "context", least=2)
    check.whole(c, "hold", least=2)
    found = corpus(c.corpus)
    say_skipped(found)
    if tokenizer is None:
        tokenizer = text.train_tokenizer(found, c.vocab)
        write_atomically(workdir / "model" / "tokenizer.json", tokenizer.backend.to_str().encode())
    whole = text.contexts(found, tokenizer, c.context, labels=labels)
    last = whole.documents % c.hold == c.hold - 1
    if last.all() or not last.any():
        raise ValueError(f"{found.name} has {len(whole.names)} documents, too few to hold out every {c.hold}th")
    return Texts(found, c.corpus.digest or found.digest(), tokenizer, split(whole, ~last), split(whole, last))


def split(whole: text.Contexts, chosen: np.ndarray) -> text.Contexts:
    """Some of the rows, their documents numbered from 0."""
    rows = whole.rows(chosen)
    kept, documents = np.unique(rows.documents, return_inverse=True)
    return rows._replace(documents=documents.astype(np.int32), names=tuple(whole.names[i] for i in kept))


def judged(c: Any, texts: Texts) -> text.Contexts:
    """At most ``c.judged`` of the held-out contexts, evenly spaced, so that all documents take part."""
    check.whole(c, "judged")
    n = len(texts.held.tokens)
    return texts.held.rows(np.unique(np.linspace(0, n - 1, min(n, c.judged)).astype(int)))


def context(c: Any, model: Transformer) -> int:
    """Tokens a context: what ``c.context`` says; of 0, 128 or as many as the model takes."""
    check.whole(c, "context", least=0)
    if c.context == 1 or c.context > model.config.context:
        raise ValueError(
            f"context must be at least 2 and at most the model's {model.config.context} (0 takes 128 or what the model "
            f"takes), got {c.context}"
        )
    return c.context or min(128, model.config.context)


def architecture(c: Any, vocab: int) -> Config:
    """The decoder that ``c.model`` states."""
    return Config(vocab=vocab, context=c.context, **{**c.model, "windows": tuple(c.model.windows)})


def trained(c: Any, texts: Texts, key: jax.Array, workdir: Path) -> tuple[Transformer, dict[str, np.ndarray]]:
    """A model trained on the corpus, kept in the work directory; and its losses in nats.

    Batches are shared by all devices, each of which takes a part of the contexts.
    """
    config, run = architecture(c, texts.tokenizer.vocab), c.lm
    check.whole(run, "batch", "steps", "log_every")
    population = objective.population(config, {"seed": np.arange(1)}, check.recipe(run, run.steps))
    source = objective.Batches(texts.train, run.batch, seed=c.seed)
    devices = jax.devices()
    options: dict[str, Any] = {}
    if len(devices) > 1 and run.batch % len(devices) == 0:
        mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
        options = {"mesh": mesh, "batch_spec": P("data")}
    result = fit(
        population, steps=run.steps, key=key, source=source, workdir=workdir / "lm", log_every=run.log_every,
        title="language model", **options,
    )  # fmt: skip
    if result.frozen_at[0] >= 0:
        raise ValueError(f"the language model diverged at step {result.frozen_at[0]}: lower lm.recipe.lr")
    model = objective.member(config, result.params)
    untrained = Transformer(config, nnx.Rngs(jax.random.fold_in(key, 1)))
    checkpoints.save(workdir / "model", model, {"corpus": texts.digest, "tokenizer": texts.tokenizer.digest()})
    losses = {
        "lm_steps": result.history_steps, "lm_loss": result.history["loss"][:, 0],
        "lm_held": np.asarray(objective.mean_loss(model, texts.held)),
        "lm_untrained": np.asarray(objective.mean_loss(untrained, texts.held)),
        "unigram": np.asarray(unigram(texts)),
    }  # fmt: skip
    say(f"held-out loss {losses['lm_held']:.3f} nats; of token frequencies {losses['unigram']:.3f}")
    return model, losses


def levels(results: dict[str, Any]) -> dict[str, float]:
    """What a training loss is compared with, of what ``trained`` found."""
    said = {"held-out text": "lm_held", "token frequencies": "unigram", "before training": "lm_untrained"}
    return {name: float(results[key]) for name, key in said.items()}


def unigram(texts: Texts) -> float:
    """Loss on held-out text of the token frequencies of the training text (each counted once more), in nats."""
    count = np.ones(texts.tokenizer.vocab)
    np.add.at(count, texts.train.tokens[:, 1:][texts.train.mask[:, 1:]], 1)
    ahead = texts.held.tokens[:, 1:][texts.held.mask[:, 1:]]
    return float(-np.log(count / count.sum())[ahead].mean())


def sample(
    model: Transformer, texts: Texts, key: jax.Array, tokens: int = 60, rows: int = 3, temperature: float = 0.8
) -> list[str]:
    """Some text that the model writes after the beginning of a document."""
    first = texts.tokenizer.bos or 0
    steps = min(tokens, model.config.context - 1)
    made = jax.jit(lambda m, k: generate(m, np.full((rows, 1), first), steps, k, temperature=temperature))(model, key)
    return [texts.tokenizer.decode(row) for row in np.asarray(made)]


def read(path: str) -> tuple[Transformer, text.Tokenizer]:
    """A model's files, and the tokenizer beside them.

    Raises:
        ValueError: either can't be used, or they don't belong together.
    """
    about: dict[str, Any] = {}
    if (Path(path) / "checkpoints").is_dir():
        model, about = checkpoints.read_own(path)
    else:
        model = checkpoints.read(path)
    tokenizer = tokenizer_of(path, model.config.vocab)
    if about.get("tokenizer", tokenizer.digest()) != tokenizer.digest():
        raise ValueError(f"{path} was trained with another tokenizer than the one beside it: put that one there again")
    return model, tokenizer


def tokenizer_of(path: str, vocab: int | None = None) -> text.Tokenizer:
    """The tokenizer beside a model's files."""
    place = Path(path)
    beside = place if place.is_dir() else next(iter(sorted(place.parent.glob("tok*.bin"))), place.parent)
    return text.read_tokenizer(beside, vocab)


def shown(tokenizer: text.Tokenizer) -> list[bytes]:
    """Bytes of each token for a reader: special ones by their names."""
    name = lambda i: (tokenizer.backend.id_to_token(i) or "").encode()  # noqa: E731
    return [piece or name(i) for i, piece in enumerate(tokenizer.pieces)]


def identity(path: str) -> dict[str, str]:
    """What tells a model's files from others, for the manifests of stores."""
    weights = checkpoints.digest(path)
    return {"model": Path(path).resolve().name, "weights": weights, "tokenizer": tokenizer_of(path).digest()}


def say_skipped(found: text.Corpus) -> None:
    """Names what of a corpus was left out, if anything was."""
    if found.skipped:
        more = f" and {len(found.skipped) - 3} more" if len(found.skipped) > 3 else ""
        say(f"{len(found.skipped)} parts of {found.name} were skipped: {'; '.join(found.skipped[:3])}{more}")
