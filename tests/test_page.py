"""Pages in a real browser, with the network off: what they show, and that it is what the model does."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import test_codes

from superpose.dashboard import page
from superpose.dashboard import records as records_module
from superpose.dashboard.records import Ablations, Subject, records
from superpose.interp import codes, compare
from superpose.sae.model import Architecture

NASTY = [b"<script>alert(1)</script>", b"</script>", b"\"'&", b"\x00", b"\x1b[31m", "\u202eabc".encode(),
         "שלום".encode(),
         "😀".encode(), b"\xd8", b"\n", b"\t", b" ", b"<b>", b"]]>", b"<!--"]  # fmt: skip
PIECES = [*NASTY, *(f" w{i}".encode() for i in range(30 - len(NASTY)))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page of all 20 latents of a small SAE, with matches and ablations, and what it is made of."""
    place = tmp_path_factory.mktemp("page")
    m, s, t = test_codes.model(), test_codes.sae(bias=-1.5), test_codes.contexts(60)
    params = {n: np.array(getattr(s, n)[...]) for n in s.arch.shapes()}
    params["b_enc"][4] = -1e6  # dead
    s = type(s)(s.arch, params)
    held = codes.write(place / "codes", m, s, "mlp_post.0", t, {}, units="mlp_post.0")
    twin = codes.write(place / "twin", m, test_codes.sae(seed=1), "mlp_post.0", t, {})
    found = compare.correlated(held, twin, 3)
    subject = Subject(m, s, "mlp_post.0", t, held, PIECES, matches={"twin": (found.number, found.score)})
    every = list(
        records(subject, range(20), ablations=Ablations(m, s, "mlp_post.0", t, batch=16), doses=(0.0, 1.0), block=7)
    )
    for record in every:
        record["why"] = {"text": f"latent {record['n']} <i>", "f1": 0.5, "precision": 0.5, "recall": 0.5, "auroc": None}
    every[3]["name"] = "a <b>label</b>"
    page.write(place / "page.html", every, 'A "title" <b>', PIECES, documents=[f"text {i}" for i in range(6)],
               prompts=[{"name": "one", "ids": [0, 3, 7], "features": [[[1, 0.5, 0.9]], [], [[2, 0.1, 0.2]]]}],
               plan=lambda: (np.array([(n, n * n) for n in range(20)], float), "a parabola"))  # fmt: skip
    return place, m, s, t, held, every


def test_records_are_what_the_model_does(made):
    """Activations, windows, groups; loss effects by an edited pass of the whole context."""
    _, m, s, t, held, every = made
    dense = held.block(0, 20).toarray().reshape(60, 10, 20)
    for record in every:
        j, e = record["n"], record["examples"]
        top = dense[..., j].max()
        assert record["on"] == (dense[..., j] != 0).sum()
        for i in range(len(e["ids"])):
            c, p, at = e["context"][i], e["place"][i], e["at"][i]
            assert e["ids"][i] == t.tokens[c, p - at : p - at + len(e["ids"][i])].tolist()
            np.testing.assert_allclose(e["acts"][i], dense[c, p - at : p - at + len(e["ids"][i]), j], rtol=1e-4)
        for name, low, high, _share, _mass, first, last in record["groups"]:
            values = [dense[e["context"][i], e["place"][i], j] for i in range(first, last)]
            if name == "silent":
                assert not any(values)
            else:
                assert all(low - 1e-4 * top <= v <= high + 1e-4 * top for v in values), name
        widths = [g for g in record["groups"] if g[0].startswith("interval")]
        if record["on"]:
            assert len(widths) == 10
            assert sum(g[3] for g in widths) == pytest.approx(1, abs=1e-3)
            assert sum(g[4] for g in widths) == pytest.approx(1, abs=1e-3)
    assert not every[4]["on"]
    assert every[4]["groups"][0][0] == "silent"
    shown = 0
    for record in every[:6]:
        j, e = record["n"], record["examples"]
        d = np.asarray(s.W_dec[j])
        for i in range(0, len(e["ids"]), 7):
            c, p = e["context"][i], e["place"][i]
            away = dense[c, :, j][:, None] * d
            clean, bare = (
                np.asarray(jax.nn.log_softmax(m(t.tokens[c : c + 1], edits=edit).logits))[0]
                for edit in (None, {"mlp_post.0": lambda v, _, away=away: v - away})
            )
            for k, q in enumerate(range(p - 4, p + 5)):
                if not 1 <= q < t.lengths[c]:
                    assert e["clean"][i][k] is None
                    continue
                effect = clean[q - 1, t.tokens[c, q]] - bare[q - 1, t.tokens[c, q]]
                assert e["clean"][i][k] == pytest.approx(clean[q - 1, t.tokens[c, q]], abs=1e-4)
                assert e["effect"][i][k] == pytest.approx(effect, abs=2e-5)
                assert e["direct"][i][k] == pytest.approx(effect, abs=2e-5)  # no layer follows
                shown += abs(effect) > 1e-3
            gave = clean[p] - bare[p]
            gave = gave - gave.mean()
            assert e["up"][1][i][0] == pytest.approx(gave.max(), abs=1e-4)
            assert e["down"][1][i][0] == pytest.approx(gave.min(), abs=1e-4)
            if gave.any():
                assert e["up"][0][i][0] == gave.argmax()
                assert e["down"][0][i][0] == gave.argmin()
    assert shown > 50


def test_numbers_beside_the_examples_are_the_model_s(made):
    """Votes, neurons by weight and by correlation, shares of the intervals, the map's neighbour, the loss effect."""
    _, m, s, t, held, every = made
    dense = held.block(0, 20).toarray()
    x = np.asarray(m(t.tokens, capture=["mlp_post.0"]).captured["mlp_post.0"]).reshape(600, 16)
    keep = t.mask.reshape(-1)
    W = np.asarray(s.W_dec[...])
    block, norm = m.blocks[0], m.ln_final
    w = W @ np.asarray(block.mlp.W_out[...])
    votes = ((w - w.mean(1, keepdims=True)) * np.asarray(norm.w[...])) @ np.asarray(m.W_U[...])
    for record in every:
        j = record["n"]
        for name, order in (("positive", np.argsort(-votes[j])), ("negative", np.argsort(votes[j]))):
            np.testing.assert_allclose(record[name][1], votes[j][order[:10]], atol=1e-4)
        assert sum(record["votes"]["counts"]) == 30
        large = np.argsort(-np.abs(W[j]))[:3]
        assert record["weights"][0] == large.tolist()
        np.testing.assert_allclose(record["weights"][1], W[j][large], rtol=1e-4)
        np.testing.assert_allclose(record["weights"][2], np.abs(W[j][large]) / np.abs(W[j]).sum(), rtol=1e-4)
        if not record["on"]:
            continue
        r = test_codes.correlations(dense[keep][:, [j]], x[keep])[0]
        np.testing.assert_allclose(record["neurons"][1], -np.sort(-r)[:3], atol=1e-4)
        v = dense[:, j][dense[:, j] > 0]
        for name, low, high, share, mass, *_ in record["groups"]:
            if name.startswith("interval"):
                inside = (v >= low * (1 - 1e-4)) & ((v < high * (1 - 1e-4)) | (name == "interval 1"))
                assert share == pytest.approx(inside.mean(), abs=1e-3)
                assert mass == pytest.approx(v[inside].sum() / v.sum(), abs=1e-3)
        effects = np.array(record["examples"]["effect"][: record["groups"][0][6]], float)
        assert record["effect"] == pytest.approx(np.nanmean(effects), abs=1e-4)
        assert record["dose"]["wanted"][1] is not None


def test_a_latent_that_is_on_once_has_a_histogram():
    """One value, or values nearer than float32 can divide by fifty."""
    for values in (np.array([3.0]), np.array([3.0, 3.0, np.nextafter(np.float32(3), np.float32(4))])):
        found = records_module._histogram(values.astype(np.float32))
        assert sum(found["counts"]) == len(values)
        assert len(found["counts"]) == 50


def test_one_latent_s_record_is_that_of_all(made):
    _place, m, s, t, held, every = made
    subject = Subject(m, s, "mlp_post.0", t, held, PIECES)
    (alone,) = records(subject, [7])
    assert alone["examples"]["context"] == every[7]["examples"]["context"]
    assert alone["groups"] == every[7]["groups"]
    with pytest.raises(ValueError, match="no latent 20: they are 0 to 19"):
        next(records(subject, [20]))
    with pytest.raises(ValueError, match="no latent to show: name at least one"):
        next(records(subject, []))
    params = {n: np.array(getattr(s, n)[...]) for n in s.arch.shapes()}
    with pytest.raises(ValueError, match="are signed: take another SAE"):
        Subject(m, type(s)(Architecture(16, 20, "abs_topk", 2), params), "mlp_post.0", t, held, PIECES)


def test_pages_ask_for_nothing_and_are_small(made):
    text = (made[0] / "page.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", text)
    assert "<script>alert" not in text
    packed = re.findall(r'id="f(\d+)">([^<]*)<', text)
    assert [int(n) for n, _ in packed] == list(range(20))
    assert max(len(data) * 3 / 4 for _, data in packed) < 20_000
    assert page.unpack(packed[5][1]) == json.loads(json.dumps(made[5][5]))


def test_many_latents_are_split_into_files_with_one_index(made, tmp_path):
    every = made[5]
    files = page.write(tmp_path / "many.html", every, "many", PIECES, a_file=8)
    assert [f.name for f in files] == ["many-000.html", "many-001.html", "many-002.html", "many.html"]
    assert 'id="f' not in files[-1].read_text()
    assert sum(f.read_text().count('id="f') for f in files[:-1]) - 0 == 20


# --- in the browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no Chromium with its driver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                 "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1300,1000",
                 f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_script_timeout(20)
    yield found
    found.quit()


def opened(browser, made, where):
    browser.get("about:blank")
    browser.get(f"file://{made[0] / 'page.html'}#{where}")
    wait(browser, f"document.getElementById('main').dataset.view === '{where or 'index'}'")
    return browser


def wait(browser, condition):
    browser.execute_async_script(
        "const done = arguments[0], end = Date.now() + 15000;"
        f"(function look() {{ if ({condition} || Date.now() > end) done(); else setTimeout(look, 30); }})();"
    )
    assert browser.execute_script(f"return {condition}"), condition


def errors(browser):
    return [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_the_browser_shows_every_latent_without_an_error(browser, made):
    for n in (0, 4, 19):
        opened(browser, made, str(n))
        said = browser.execute_script("return document.getElementById('main').innerText")
        assert f"Feature {n}" in said
        assert ("Dead" in said) == (n == 4)
        assert ("blue where taking the feature out raises the loss" in said) == True  # noqa: E712
    assert browser.execute_script("return document.querySelectorAll('#main script, #main b').length") == 0
    assert browser.title.startswith("19")
    assert not errors(browser)


def test_activations_and_underlines_are_those_of_the_records(browser, made):
    opened(browser, made, "2")
    e = made[5][2]["examples"]
    shown = browser.execute_script(
        "return [...document.querySelectorAll('.line')].map(l => [...l.querySelectorAll('bdi')].map(b => "
        "[b.textContent, b.dataset.act, b.dataset.effect, b.className, getComputedStyle(b).borderBottomColor]))"
    )
    assert len(shown) == len(e["ids"])
    underlined = set()
    for i, line in enumerate(shown):
        at = e["at"][i]
        first = max(0, at - 4)
        for t, (_text, act, effect, name, colour) in enumerate(line, first):
            assert float(act) == pytest.approx(e["acts"][i][t], abs=1e-4)
            near = t - at + 4
            if e["clean"][i][near] is not None:
                assert float(effect) == pytest.approx(e["effect"][i][near], abs=1e-6)
                if abs(float(effect)) > 0.05:  # color-mix gives numbers from 0 to 1
                    red, _, blue = (float(v) for v in re.findall(r"[\d.]+", colour.replace("color(srgb", ""))[:3])
                    assert (blue > red) == (float(effect) > 0), (colour, effect)
                    underlined.add(float(effect) > 0)
            else:
                assert effect is None
            assert (name == "here") == (t == at)
    assert underlined == {True, False}
    every = {text for line in shown for text, *_ in line}
    assert "<script>alert(1)</script>" in every
    assert "😀" in every
    assert "שלום" in every
    assert "\\xd8" in every
    assert "\\u202eabc" in every
    assert "␀" in every


def test_hover_more_and_keys(browser, made):
    from selenium.webdriver import ActionChains, Keys

    opened(browser, made, "2")
    token = browser.find_element("css selector", ".line bdi.here[data-effect]")
    ActionChains(browser).move_to_element(token).perform()
    wait(browser, "document.getElementById('tip').classList.contains('shown')")
    tip = browser.execute_script("return document.getElementById('tip').innerText")
    assert "activation" in tip
    assert "votes up what follows" in tip
    assert "probability with, without" in tip
    line = browser.find_element("css selector", ".line")
    before = len(line.find_elements("css selector", "bdi"))
    line.find_element("css selector", "button").click()
    assert len(line.find_elements("css selector", "bdi")) > before
    line.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element.tag_name == "bdi"
    browser.find_element("tag name", "body").send_keys("j")
    wait(browser, "location.hash === '#3'")
    assert not errors(browser)


def test_search_sort_map_texts_and_number(browser, made):
    opened(browser, made, "")
    box = browser.find_element("id", "search")
    box.send_keys("label")

    def rows():
        return browser.execute_script("return [...document.querySelectorAll('.index tbody tr')].map(r => r.innerText)")

    assert len(rows()) == 1
    assert rows()[0].startswith("3")
    box.clear()
    box.send_keys(" ")
    button = browser.find_element("css selector", "th[data-key=max] button")
    button.click()
    largest = max(made[5], key=lambda r: r["max"])["n"]
    assert rows()[0].split()[0] == str(largest)
    assert browser.find_element("css selector", "th[data-key=max]").get_attribute("aria-sort") == "descending"
    opened(browser, made, "map")
    assert browser.execute_script("return document.querySelectorAll('svg circle').length") == 20
    opened(browser, made, "prompts")
    browser.find_elements("css selector", ".line bdi")[0].click()
    assert "0.9" in browser.find_element("id", "panel").text or "90 %" in browser.find_element("id", "panel").text
    opened(browser, made, "")
    number = browser.find_element("id", "number")
    number.send_keys("11\n")
    wait(browser, "document.getElementById('main').dataset.view === '11'")
    opened(browser, made, "99")
    assert "There is no feature 99" in browser.find_element("id", "main").text
    assert not errors(browser)
