"""The whole story in a browser: from the sign-in to a result, on a real worker, on every page also what axe says."""

import json
import re
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx2
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from benchmarks.harness.jobs import owner_of
from benchmarks.harness.processes import WAIT_SECONDS
from benchmarks.harness.site import MODEL, Site
from replaceme_core.ledger import reading
from replaceme_core.report.page import render_page
from tests.fixtures.browser.chromium import context_of, cut_off_on_a_phone, findings, widths_that_overflow
from tests.fixtures.jobs.ledger import succeed
from tests.fixtures.jobs.measured import REPORTED, run
from tests.fixtures.reports.real_run import finished_run

MARK = "() => { window.stillTheSame = true; }"
IS_SAME = "() => window.stillTheSame === true"
READ_LOAD = "() => { htmx.ajax('GET', '/ui/workers', {target: '#load', select: '#load > *'}).catch(() => {}); }"
LOADED = "() => [...document.images].every((one) => one.complete && one.naturalWidth > 0)"
PLOT_LOADED = "number => document.querySelectorAll('.plots img')[number].naturalWidth > 0"
NAMES = "links => links.map((one) => one.pathname.split('/').at(-1))"
TYPE = "(field, text) => { field.value = text; field.dispatchEvent(new Event('input', {bubbles: true})); }"
SHIFTS = """() => {
  window.shifted = 0;
  const add = (list) => list.getEntries().forEach((one) => { window.shifted += one.value; });
  new PerformanceObserver(add).observe({type: "layout-shift", buffered: false});
}"""
SENT = """() => {
  const all = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  return [all.map((one) => one.name), all.reduce((sum, one) => sum + one.transferSize, 0)];
}"""
RECORD = """() => {
  window.progressSeen = [];
  const look = () => {
    const text = document.getElementById("overall")?.textContent;
    if (text && window.progressSeen.at(-1) !== text) window.progressSeen.push(text);
  };
  new MutationObserver(look).observe(document.getElementById("main"), {childList: true, subtree: true});
  look();
}"""


def check(page: Page) -> None:
    """What holds for every page."""
    assert findings(page) == [], page.url
    assert widths_that_overflow(page) == [], page.url
    assert page.locator("h1").count() == 1
    assert page.locator("main").count() == 1
    assert page.title().endswith("ReplaceMe")


def test_from_the_sign_in_to_a_result(browser: Browser, keyed_site: Site, key: str) -> None:
    url = keyed_site.start_api().url
    assert url is not None
    context = context_of(browser)
    broken: list[str] = []

    def note(message: ConsoleMessage) -> None:
        is_meant = message.text.startswith(("Failed to load resource", "htmx:"))  # of requests that are to fail
        if message.type in ("error", "warning") and not is_meant:
            broken.append(message.text)

    context.on("console", note)
    context.on("weberror", lambda error: broken.append(str(error.error)))
    page = context.new_page()

    # the way in, by keyboard
    page.goto(url)
    check(page)
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("rmk_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("its form or its checksum is wrong")).to_be_visible()
    check(page)
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")
    expect(page.get_by_text("There are no jobs yet")).to_be_visible()
    check(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()

    # a form that plans
    page.get_by_role("link", name="Submit the first job").click()
    page.get_by_label("Model", exact=True).fill("acme/real")
    expect(page.locator("#planned")).to_contain_text("2 of 6 blocks go")
    page.get_by_label("Fraction of the blocks").fill("34")
    expect(page.locator("#ratio-error")).to_have_text("expected a number greater than 0 and less than 1, got 34")
    expect(page.get_by_label("Fraction of the blocks")).to_have_attribute("aria-invalid", "true")
    check(page)
    page.get_by_label("Fraction of the blocks").fill("0.34")
    expect(page.locator("#ratio-error")).to_be_hidden()
    expect(page.locator("#announcer")).to_contain_text("Plan: 2 of 6 blocks removed")
    page.route("**/ui/plan", lambda route: route.abort())
    page.get_by_label("Gate", exact=True).fill("size")
    expect(page.locator("#connection")).to_contain_text("The service does not answer")
    expect(page.locator("#connection")).to_contain_text("Change a field to try again.")
    page.unroute_all()
    page.get_by_label("Gate", exact=True).fill("size_ratio")
    expect(page.locator("#gate-error")).to_contain_text("expected a criterion such as perplexity_ratio<=1.6")
    page.get_by_label("Gate", exact=True).fill("size_ratio<=1, perplexity_ratio<=1000")
    expect(page.locator("#gate-error")).to_be_hidden()
    page.get_by_label("Remove as many blocks as pass").check()
    page.get_by_role("link", name="Webhooks").click()
    page.go_back()
    expect(page.get_by_label("Gate", exact=True)).to_have_value("size_ratio<=1, perplexity_ratio<=1000")
    expect(page.locator("#planned")).to_contain_text("2 of 6 blocks go")
    page.locator("#samples").evaluate(TYPE, "many")  # in a field that a clone has filled in, and nobody has opened
    expect(page.locator("#samples-error")).to_be_visible()
    page.get_by_label("Calibration sequences").fill("16")
    page.get_by_label("Tokens in each").fill("32")
    page.get_by_label("Device").select_option("cpu")
    page.get_by_label("Method").select_option("least_squares")
    page.get_by_label("Labels").fill("run=first")
    check(page)
    page.get_by_role("button", name="Submit the job").click()
    expect(page.get_by_text("number 1 in the queue")).to_be_visible()
    job = page.url.rpartition("/")[2]
    check(page)

    # another one, which is cancelled
    other = context.new_page()
    other.goto(f"{url}/ui/new")
    other.get_by_label("Model", exact=True).fill("acme/real")
    other.get_by_role("button", name="Submit the job").click()
    other.get_by_role("button", name="Cancel…").click()
    other.get_by_role("button", name="Keep it").click()
    expect(other.get_by_role("dialog")).to_be_hidden()
    other.get_by_role("button", name="Cancel…").click()
    check(other)
    other.get_by_role("button", name="Cancel this job").click()
    expect(other.locator("p.big .status")).to_have_text("cancelled")
    check(other)
    cancelled = other.url.rpartition("/")[2]

    # two ratios at once: a page of their own, with a chart
    other.get_by_role("link", name="New job").click()
    other.get_by_label("Model", exact=True).fill("acme/real")
    other.get_by_label("Fraction of the blocks").fill("0.2, 0.4")
    expect(other.locator("#planned")).to_contain_text("2 jobs; this is the plan of the one that removes the most")
    other.get_by_role("button", name="Submit the job").click()
    expect(other.locator("#rows")).to_contain_text("A chart of quality against size appears once")
    for one, size in zip(other.locator("#rows th a").evaluate_all(NAMES), (80, 60), strict=True):
        sides = {"before": {**REPORTED["before"], "bytes": 100}, "after": {**REPORTED["after"], "bytes": size}}
        run(keyed_site.database, one, partial(succeed, report={**REPORTED, **sides}))
    expect(other.locator("#rows .status.succeeded")).to_have_count(2)
    expect(other.locator("#rows .chart circle").first).to_be_visible()
    check(other)
    other.get_by_label("Greatest loss that passes").fill("1000000")
    other.get_by_role("button", name="Mark the smallest").click()
    expect(other.locator("tr.chosen")).to_contain_text("0.4 of the blocks")
    with other.expect_download() as file:
        other.get_by_role("link", name="Figures as CSV").click()
    assert len(file.value.path().read_text().splitlines()) == 3

    # one whose gate cannot be passed
    body = {"model": "acme/real", "ratio": 0.25, "method": "drop", "gate": {"size_ratio": {"max": 0.1}}}
    body["calibration"] = {"dataset": "builtin:general", "samples": 16, "max_length": 32}
    headers = {"authorization": f"Bearer {key}"}
    response = httpx2.post(f"{url}/jobs", json=body, headers=headers, timeout=WAIT_SECONDS, trust_env=False)
    rejected = response.raise_for_status().json()["id"]

    # progress moves on both pages, and neither is loaded again
    other.goto(f"{url}/ui/jobs")
    row = other.get_by_role("row").filter(has_text=job[:8])
    expect(row.locator(".status")).to_have_text("queued")
    row.get_by_role("checkbox").check()
    for one in (page, other):
        one.evaluate(MARK)
    page.evaluate(RECORD)
    page.get_by_role("link", name="Clone with changes").focus()
    keyed_site.start_worker()
    expect(page.locator("p.big .status")).to_have_text("succeeded")
    expect(row.locator(".status")).to_have_text("succeeded")
    assert page.evaluate(IS_SAME)
    assert other.evaluate(IS_SAME)
    seen = [int(text.partition(" ")[0]) for text in page.evaluate("() => window.progressSeen")]
    assert len(seen) >= 2, seen
    expect(page.get_by_role("link", name="Clone with changes")).to_be_focused()
    assert seen == sorted(seen)
    expect(row.get_by_role("checkbox")).to_be_checked()
    check(page)
    # answers of a random model have no spaces
    assert page.locator("#answers").evaluate("(one) => one.scrollWidth <= one.clientWidth")

    # what was measured is what the database has
    expect(page.locator(".headlines li").first).to_contain_text("Perplexity")
    page.get_by_text("All figures before and after").click()
    with keyed_site.database.session(read_only=True) as session:
        metrics = {
            metric.name: metric.value
            for metric in reading.metrics(session, job, owner=owner_of(session, job))
            if metric.candidate is None
        }
    shown = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="Perplexity", exact=True))
    for side in ("before", "after"):
        expect(shown).to_contain_text(f"{metrics[f'{side}.perplexity']:,.2f}")
    criteria = page.locator("#gate tbody").get_by_role("row")
    expect(criteria).to_have_text([re.compile("passed"), re.compile("passed")])
    expect(page.locator("#trials tbody").get_by_role("row").last).to_contain_text("passed")
    expect(page.locator(".notice.good")).to_contain_text("2 of 6 blocks removed")
    assert cut_off_on_a_phone(page, "#gate, #trials, #compared-1, #compared-2, #candidates") == []
    plots = page.locator(".plots img")
    assert plots.count() >= 5
    page.reload()  # what is done is drawn once
    page.evaluate(SHIFTS)
    for number in range(plots.count()):
        plots.nth(number).evaluate("plot => plot.scrollIntoView()")
        page.wait_for_function(PLOT_LOADED, arg=number)  # the next one only then: what is passed by is not read
    page.wait_for_function(LOADED)
    assert page.evaluate("() => window.shifted") < 0.01, "plots move nothing when they arrive"
    check(page)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").first.click()
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied.startswith("from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_")
    with page.expect_response(re.compile(r"/report\.json$")) as report:
        page.get_by_role("link", name="as JSON").click()
    assert report.value.json()["job_id"] == job
    page.go_back()
    page.get_by_role("link", name="Report", exact=True).click()
    page.wait_for_function(LOADED)
    expect(page.get_by_role("heading", name="Which blocks, and why")).to_be_visible()
    check(page)

    # a gate that was missed: nothing of the result is on the Hub
    page.goto(f"{url}/ui/jobs/{rejected}")
    expect(page.locator("p.big .status")).to_have_text("failed")
    expect(page.locator("#live .notice.bad")).to_contain_text("gate_rejected")
    expect(criteria).to_have_text([re.compile("missed")])
    check(page)
    assert not list(keyed_site.hub_directory.glob(f"**/*{rejected[:8]}*"))
    assert list(keyed_site.hub_directory.glob(f"**/*{job[:8]}*"))

    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete this job").click()
    expect(page.get_by_role("row").filter(has_text=job[:8])).to_be_visible()
    expect(page.get_by_role("row").filter(has_text=rejected[:8])).to_have_count(0)

    # side by side
    other.get_by_role("row").filter(has_text=cancelled[:8]).get_by_role("checkbox").check()
    other.get_by_role("button", name="Compare the chosen jobs").click()
    expect(other.get_by_role("row").filter(has_text="Status")).to_contain_text("succeeded")
    expect(other.get_by_role("row").filter(has_text="Status")).to_contain_text("cancelled")
    check(other)

    # keys and webhooks
    other.get_by_role("link", name="Webhooks").click()
    other.get_by_label("URL").fill("https://8.8.8.8/x")  # nothing is sent: no job changes meanwhile
    other.get_by_role("button", name="Add the webhook").click()
    expect(other.locator("#secret")).to_contain_text("whsec_")
    check(other)
    other.get_by_role("button", name="Delete…").click()
    other.get_by_role("button", name="Delete it").click()
    expect(other.get_by_text("There are no webhooks")).to_be_visible()
    check(other)
    other.get_by_role("link", name="Keys").click()
    other.get_by_text("New key").click()
    other.get_by_label("Name").fill("ci")
    check(other)
    other.get_by_role("button", name="Create the key").dblclick()  # makes one
    expect(other.locator("#made")).to_contain_text("rmk_")
    check(other)
    other.get_by_role("button", name="Revoke ci").click()
    other.get_by_role("button", name="Revoke it").click()
    expect(other.get_by_role("row").filter(has_text="ci")).to_contain_text("revoked")

    # who works, and the way out
    other.get_by_role("link", name="Workers").click()
    expect(other.get_by_role("row").filter(has_text="any worker")).to_contain_text("(0 of 1 busy)")
    check(other)
    addresses, sent = other.evaluate(SENT)
    assert all(one.startswith(url) for one in addresses) and sent < 100_000, (addresses, sent)
    lost = other.locator("#connection")
    other.route("**/ui/workers", lambda route: route.abort())
    other.evaluate(READ_LOAD)
    expect(lost).to_contain_text("The service does not answer")
    other.unroute_all()
    other.evaluate(READ_LOAD)
    expect(lost).to_be_hidden()
    other.emulate_media(color_scheme="dark")
    for path in ("/ui/jobs", f"/ui/jobs/{job}", "/ui/new", "/ui/workers", "/ui/jobs/none", "/ui/compare"):
        other.goto(f"{url}{path}")
        check(other)
    other.get_by_role("button", name="Sign out").click()
    expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
    other.goto(f"{url}/ui/jobs/{job}")
    expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
    context.close()
    assert broken == [], "what a page may not do is written to the console"


def test_a_page_of_another_port_cancels_nothing(browser: Browser, embedded_site: Site, tmp_path: Path) -> None:
    """It is served by a program of somebody else on the same machine; the page of the description is ours."""
    url = embedded_site.start_api().url
    body = {"model": MODEL, "ratio": 0.3, "calibration": "builtin:general"}
    job = (
        httpx2.post(f"{url}/jobs", json=body, timeout=WAIT_SECONDS, trust_env=False)
        .raise_for_status()
        .json()["links"]["self"]
    )
    page = context_of(browser).new_page()
    (tmp_path / "index.html").write_text(f'<form method="post" action="{url}{job}/cancel"><button>Win</button></form>')
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        page.goto(f"http://127.0.0.1:{other.server_port}/")
        page.evaluate(f"() => fetch('{url}{job}/cancel', {{method: 'POST', mode: 'no-cors'}}).catch(() => {{}})")
        with page.expect_navigation():
            page.get_by_role("button", name="Win").click()
        expect(page.locator("body")).to_contain_text("foreign_origin")
        other.shutdown()
    assert httpx2.get(f"{url}{job}", timeout=WAIT_SECONDS, trust_env=False).json()["status"] == "queued"

    broken: list[str] = []
    page.on("console", lambda message: broken.append(message.text))
    page.goto(f"{url}/docs")
    page.locator("#operations-jobs-cancel_job").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_placeholder("job_id").fill(job.rpartition("/")[2])
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    assert broken == []
    page.context.close()
    assert httpx2.get(f"{url}{job}", timeout=WAIT_SECONDS, trust_env=False).json()["status"] == "cancelled"


LONG = "x" * 300
HOSTILE = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">"


def test_a_report_is_for_every_screen_and_for_paper_whatever_strangers_wrote(browser: Browser, tmp_path: Path) -> None:
    """Opened as a file, in the dark, and without a network."""
    report = json.loads((finished_run(tmp_path / "run")[2] / "replaceme.json").read_text())
    report["spec"]["model"]["repo_id"] = f"org/{LONG}"
    report["texts"][0]["name"] = report["tasks"][0]["name"] = LONG
    report["answers"][0] |= {"prompt": HOSTILE, "before": HOSTILE, "after": LONG}
    report["versions"] = {LONG: HOSTILE}
    of_default = ("builtin:pydoc-topics", "self-generated", "builtin:general", "repeated passages", "questions")
    for candidate in report["candidates"]:
        candidate["source_losses"] = dict.fromkeys(of_default, 2.3955)
    path = tmp_path / "page.html"
    path.write_text(render_page(report), encoding="utf-8")
    for dark in (False, True):
        page, noted = context_of(browser, dark=dark).new_page(), list[str]()
        page.on("console", lambda message, noted=noted: noted.append(message.text))
        page.on("request", lambda request, noted=noted: noted.append(request.url[:60]))
        page.goto(path.as_uri())
        assert [one for one in noted if one != path.as_uri()[:60] and not one.startswith("data:image/svg+xml")] == []
        assert page.locator("img").count() == 7
        page.wait_for_function(LOADED)
        assert "taken over" not in page.title()
        assert page.get_by_text(HOSTILE).count() >= 2
        assert findings(page) == []
        assert widths_that_overflow(page) == []
        assert cut_off_on_a_phone(page, ".scroll:has(table)") == []
        table = page.get_by_role("region", name=re.compile("candidates$"))
        assert not table.evaluate("(one) => one.scrollWidth > one.clientWidth")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("() => document.activeElement.id") == "main"
        page.get_by_role("link", name="Time and memory").press("Enter")
        assert page.url.endswith("#cost")
        page.emulate_media(media="print", color_scheme="light")
        page.set_viewport_size({"width": 680, "height": 1000})  # A4 within its margins
        assert page.locator("nav").is_hidden()
        assert not page.evaluate("() => document.documentElement.scrollWidth > document.documentElement.clientWidth")
        page.context.close()
