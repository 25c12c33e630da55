// The page in a real browser against real clusters. One cluster for all tests, in this order.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { faults, launch, shifted, visitor } from "./browser.mjs";
import { eventually, guarded, issuer, spec, up } from "./cluster.mjs";

const folder = mkdtempSync(join(tmpdir(), "crescendo-page-"));
const EVIL = `<img src=x onerror="document.title='taken'"><script>document.title='taken'</script>`;
let browser, cluster, provider, lone, me, first, second, paired, drawn;

before(async () => {
  provider = await issuer();
  [browser, cluster, lone] = await Promise.all([launch(), up(join(folder, "up")), guarded(join(folder, "guarded"), provider)]);
  me = await visitor(browser, cluster.url);
});

after(async () => {
  await browser?.close();
  await Promise.all([cluster?.stop(), lone?.stop()]);
  provider?.stop();
  rmSync(folder, { recursive: true, force: true });
});

const number = async (locator) => Number((await locator.textContent()).replace(/[^0-9.]/g, " ").trim().split(" ")[0]);
const steps = (page) => number(page.locator(".stages li").first().locator(".measure .num").first());
const badge = (page, text) => page.locator(".head .badge", { hasText: text }).first();

test("what is served is protected", async () => {
  for (const path of ["/", "/nothing"]) {
    const response = await fetch(cluster.url + path);
    const policy = response.headers.get("content-security-policy");
    assert.match(policy, /default-src 'none'.*frame-ancestors 'none'/);
    assert.doesNotMatch(policy, /unsafe/);
    assert.equal(response.headers.get("x-content-type-options"), "nosniff");
    assert.equal(response.headers.get("referrer-policy"), "no-referrer");
  }
  const rebound = await fetch(`${cluster.url}/`, { headers: { "sec-fetch-site": "cross-site" } });
  assert.equal(rebound.status, 403, "another site's request");
});

test("a job that was submitted appears, and its curve grows", async () => {
  const jobs = await me.open("jobs");
  await jobs.getByText("No job was submitted yet").waitFor();
  first = cluster.submit(spec("first"));
  await jobs.getByRole("link", { name: first }).click();
  await jobs.getByRole("heading", { name: first }).waitFor();
  await badge(jobs, "running").waitFor();
  const loss = jobs.getByRole("figure").filter({ hasText: "Loss" });
  await loss.getByText("Table").click();
  const last = async () => number(loss.locator("tbody tr").last().locator("th"));
  const before = await eventually("the first points", async () => (await loss.locator("tbody tr").count()) > 2 && last());
  await eventually("the curve grows", async () => (await last()) > before);
  // What Web Vitals call good.
  assert.ok((await shifted(jobs)) < 0.1, `things moved by ${await shifted(jobs)}`);
  const paint = await jobs.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime);
  console.log(`first contentful paint ${Math.round(paint)} ms`);
});

test("eight tabs are live at once", async () => {
  const tabs = await Promise.all(Array.from({ length: 8 }, () => me.open(`jobs/${first}`)));
  const seen = await Promise.all(
    tabs.map(async (tab) => {
      await tab.locator(".stages li").first().waitFor();
      const before = await steps(tab);
      await eventually("a tab goes on", async () => (await steps(tab)) > before);
      return true;
    }),
  );
  assert.equal(seen.length, 8);
  await Promise.all(tabs.map((tab) => tab.close()));
});

test("a job is paused and goes on", async () => {
  const page = await me.open(`jobs/${first}`);
  await page.getByRole("button", { name: "Pause" }).click();
  await page.getByLabel("Reason").fill(EVIL);
  await page.getByRole("dialog").getByRole("button", { name: "Pause" }).click();
  await badge(page, "paused").waitFor();
  assert.equal(cluster.get(first).state, "paused");
  // What ranks had done is in a checkpoint by then, and the curve comes from its history.
  await eventually("its ranks have left", () => cluster.get(first).slotsHeld === 0 || cluster.get(first).slots_held === 0);
  await page.getByRole("button", { name: "Resume" }).click();
  await badge(page, "running").waitFor();
  await page.close();
});

test("what is drawn with checkpoints is seen by step, with the loss on held-out pairs", async () => {
  drawn = cluster.submit(spec("drawn", { steps: 80, samples: "heldOut: 1, pictures: 2, validationPairs: 2, draw: {steps: 2}" }));
  const page = await me.open(`jobs/${drawn}?tab=samples`);
  const pictures = page.locator(".samples td img");
  // The one curator makes its pairs first, and tries again after a while what has failed.
  await page.getByRole("columnheader", { name: "step 80" }).waitFor({ timeout: 180_000 });
  await eventually("what it begins and ends with is drawn", async () => (await pictures.count()) === 4);
  await eventually("they are seen", () => pictures.evaluateAll((all) => all.every((one) => one.naturalWidth > 0)));
  await page.getByLabel("Step", { exact: true }).press("Home");
  await eventually("the slider is at the base", async () => (await page.getByRole("columnheader", { name: "step 80" }).count()) === 0);
  await page.getByRole("columnheader", { name: "before training" }).waitFor();
  await page.getByLabel("All steps").check();
  await page.getByRole("columnheader", { name: "step 80" }).waitFor();
  const loss = page.getByRole("figure").filter({ hasText: "Validation loss" });
  await loss.getByText("Table").click();
  await eventually("the loss is told by step", async () => (await loss.locator("tbody tr").count()) >= 2);
  await page.goto(`${cluster.url}/#/compare?jobs=${first},${drawn}`);
  const beside = page.getByRole("region", { name: "Pictures by job" });
  await eventually("what was drawn is beside the other job", async () => (await beside.locator("td img").count()) === 2);
  await page.getByLabel("Drawn at").selectOption({ label: "before training" });
  await beside.getByAltText(`, ${drawn}`).first().waitFor();
  await page.close();
});

test("what was written from outside stays text", async () => {
  cluster.cli("note", first, EVIL);
  // A folder that is not there: it stands in reasons and in log lines.
  const evil = cluster.submit(spec("evil", { subjects: `/nowhere/${EVIL}` }));
  const page = await me.open(`jobs/${first}?tab=notes`);
  await page.getByText("<img src=x").first().waitFor();
  await page.getByLabel("Add a note").fill(`mine ${EVIL}`);
  await page.getByRole("button", { name: "Add" }).click();
  await page.getByText("mine <img").waitFor();
  await page.goto(`${cluster.url}/#/jobs/${evil}`);
  await eventually("the reason is shown", async () => (await page.getByText("<img src=x").count()) > 0);
  await page.goto(`${cluster.url}/#/jobs/${evil}?tab=log`);
  await page.locator(".entry .message", { hasText: "nowhere" }).first().waitFor();
  await page.goto(`${cluster.url}/#/jobs/${encodeURIComponent(EVIL)}`);
  await page.getByRole("alert").first().waitFor();
  assert.doesNotMatch(await page.title(), /taken/);
  assert.equal(await page.locator("main img, main script").count(), 0);
  await page.close();
});

test("logs follow, checkpoints are downloaded whole, the spec and the lineage are told", async () => {
  const page = await me.open(`jobs/${first}?tab=log`);
  await page.locator(".entry").first().waitFor();
  await page.goto(`${cluster.url}/#/jobs/${first}?tab=checkpoints`);
  const file = page.getByRole("button", { name: "dit_lora.safetensors" }).first();
  const [download] = await Promise.all([page.waitForEvent("download"), file.click()]);
  const sha = createHash("sha256").update(readFileSync(await download.path())).digest("hex");
  const registered = JSON.parse(cluster.cli("checkpoints", first, "-o", "json"));
  assert.ok(JSON.stringify(registered).includes(sha), "what came is what is registered");
  await page.goto(`${cluster.url}/#/jobs/${first}?tab=spec`);
  await page.getByText("apiVersion: crescendo/v1").waitFor();
  await page.goto(`${cluster.url}/#/jobs/${first}?tab=lineage`);
  await page.getByText("SHA-256").first().waitFor();
  await page.close();
});

test("jobs are filtered, sorted and compared", async () => {
  second = cluster.submit(spec("second", { rate: "5e-4" }));
  const page = await me.open("jobs");
  const rows = page.locator("tbody tr");
  await page.getByRole("link", { name: second }).waitFor();
  await page.getByLabel("Name").fill("secon");
  await eventually("one is left", async () => (await rows.count()) === 1);
  await page.getByLabel("Name").fill("");
  await page.getByLabel("Labels").fill("of=nothing");
  await page.getByText("No job matches").waitFor();
  await page.getByLabel("Labels").fill("of=page");
  await page.getByLabel("State").selectOption("open");
  await page.getByRole("button", { name: "Name" }).click();
  await eventually("they are sorted", async () => (await rows.first().getByRole("link").textContent()).startsWith("first"));
  await page.getByRole("checkbox", { name: `Compare ${first}` }).check();
  await page.getByRole("checkbox", { name: `Compare ${second}` }).check();
  await page.getByRole("link", { name: "Compare 2" }).click();
  const loss = page.getByRole("figure").filter({ hasText: "Loss" });
  await loss.locator(".legend li", { hasText: second }).waitFor();
  await loss.locator(".legend li", { hasText: first }).waitFor();
  await page.close();
});

test("a job is cancelled, and deleted only by its name", async () => {
  const page = await me.open(`jobs/${second}`);
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByRole("button", { name: "Cancel the job" }).click();
  await badge(page, "cancelled").waitFor();
  await page.getByRole("button", { name: "Delete" }).click();
  const erase = page.getByRole("button", { name: "Delete for good" });
  assert.ok(await erase.isDisabled());
  await page.getByRole("dialog").getByRole("textbox").fill("second");
  assert.ok(await erase.isDisabled(), "its name is not its id");
  await page.getByRole("dialog").getByRole("textbox").fill(second);
  await erase.click();
  await eventually("it is gone", async () => /deleted/.test((await page.locator("main").textContent()) ?? ""));
  await page.close();
});

test("pairs are looked at, narrowed down and marked", async () => {
  const id = cluster.submit(spec("pairs", { pairs: 64, similarity: [0.6, 0.97] }));
  await eventually("there are pairs", () => Number(cluster.get(id).stages[0].pairsCommitted) === 64);
  const page = await me.open(`jobs/${id}?tab=pairs`);
  const cards = page.locator(".pair");
  const isDrawn = (image) => image.evaluate((element) => element.complete && element.naturalWidth > 0);
  await eventually("24 pairs are shown", async () => (await cards.count()) === 24);
  await eventually("with pictures", () => isDrawn(cards.first().locator("img").first()));
  await page.getByRole("button", { name: "More" }).click();
  await eventually("and more of them", async () => (await cards.count()) === 48);
  const scores = async () => (await page.locator(".pair .faint").allTextContents()).map((text) => Number(/similarity ([0-9.-]+)/.exec(text)[1]));
  const inOrder = await scores();
  // By the keyboard, then by dragging over the upper half.
  const least = page.getByRole("slider", { name: "Least similarity" });
  await least.focus();
  for (let step = 0; step < 10; step += 1) await page.keyboard.press("ArrowRight");
  const limit = Number(await least.getAttribute("aria-valuetext"));
  await eventually("only those above are left", async () => {
    const left = await scores();
    return left.length > 0 && left.every((score) => score >= limit);
  });
  assert.ok(inOrder.some((score) => score < limit), "something was left out");
  await page.getByRole("button", { name: "All", exact: true }).click();
  const box = await page.locator(".histogram svg").boundingBox();
  await page.mouse.move(box.x + box.width * 0.6, box.y + box.height / 2);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width - 2, box.y + box.height / 2, { steps: 4 });
  await page.mouse.up();
  await eventually("those above are left again", async () => Number(await least.getAttribute("aria-valuetext")) > 0.6 && (await scores()).length > 0);
  await page.getByRole("button", { name: "All", exact: true }).click();
  await page.getByText("Table", { exact: true }).click();
  assert.ok((await page.locator(".histogram tbody tr").count()) > 3);
  await page.getByLabel("Show").selectOption("rejected");
  await page.getByLabel("Reason").selectOption("similarity_low");
  await eventually("those are turned down", async () => (await cards.count()) > 0 && (await page.locator(".pair .reason", { hasText: "similarity low" }).count()) === (await cards.count()));
  await page.getByLabel("Show").selectOption("accepted");
  await page.getByRole("button", { name: "Look at pair 1", exact: true }).click();
  await page.getByRole("dialog").getByLabel("Why it is bad").fill(EVIL);
  await page.getByRole("button", { name: "Mark bad" }).click();
  await page.getByRole("dialog").getByText("Marked bad by").waitFor();
  await page.getByRole("button", { name: "Close" }).click();
  await cards.nth(1).getByText("marked bad: <img").waitFor();
  const marks = () => JSON.parse(cluster.cli("pairs", id, "--marks", "-o", "json"));
  assert.deepEqual(marks().marks.map(({ index, reason }) => [index, reason]), [[1, EVIL]]);
  await page.getByRole("button", { name: "Look at pair 1", exact: true }).click();
  await page.getByRole("button", { name: "Take the mark back" }).click();
  await page.getByLabel("Why it is bad").waitFor();
  assert.deepEqual(marks(), { version: 2, marks: [] });
  assert.doesNotMatch(await page.title(), /taken/);
  assert.deepEqual(await faults(page, "a pair"), []);
  await page.close();
  cluster.cli("cancel", id);
  paired = id;
});

test("a restart of the controller is lived through", async () => {
  const page = await me.open("jobs");
  await page.getByText("Live", { exact: true }).waitFor();
  const trouble = me.trouble.length;
  const state = JSON.parse(readFileSync(join(folder, "up/cluster/up.json"), "utf8"));
  process.kill(state.processes.find(({ name }) => name === "controller").pid, "SIGKILL");
  await page.getByText("Reconnecting").waitFor();
  await page.getByText("Live", { exact: true }).waitFor();
  await page.getByRole("link", { name: first }).waitFor();
  await page.goto(`${cluster.url}/#/jobs/${first}`);
  // The new controller has heard of few steps, after some hundred: those before come from the checkpoint. A point of a long curve
  // stands for several steps.
  const loss = page.getByRole("figure").filter({ hasText: "Loss" });
  await loss.getByText("Table").click();
  await eventually("the curve is whole", async () => (await loss.locator("tbody tr").count()) > 3 && (await number(loss.locator("tbody tr").first().locator("th"))) <= 20);
  // Calls that were refused meanwhile are in the console, and are no mistake.
  const since = me.trouble.splice(trouble);
  assert.deepEqual(since.filter((line) => !/ERR_CONNECTION|ERR_INCOMPLETE|ERR_EMPTY/.test(line)), []);
  await page.close();
});

for (const colorScheme of ["light", "dark"]) {
  test(`every view is accessible, ${colorScheme}`, async () => {
    const own = await visitor(browser, cluster.url, { colorScheme });
    const page = await own.open("jobs");
    const views = [
      ["jobs", "tbody tr"],
      [`jobs/${first}`, ".plot"],
      ...["log", "checkpoints", "spec", "lineage", "notes"].map((tab) => [`jobs/${first}?tab=${tab}`, ".tabs"]),
      [`jobs/${paired}?tab=pairs`, ".pair img"],
      [`jobs/${drawn}?tab=samples`, ".samples td img"],
      ["cluster", "tbody tr"],
      ["queues", "h2:has-text('Tenants')"],
      [`compare?jobs=${first},${second}`, ".plot"],
    ];
    const found = [];
    for (const [route, ready] of views) {
      await page.goto(`${cluster.url}/#/${route}`);
      await page.locator(ready).first().waitFor();
      found.push(...(await faults(page, route)));
    }
    await page.goto(`${cluster.url}/#/jobs/${first}`);
    await page.getByRole("button", { name: "Pause" }).click();
    found.push(...(await faults(page, "a dialog")));
    await own.close();
    assert.deepEqual(found, []);
    assert.deepEqual(own.trouble, []);
  });
}

test("a narrow screen shows all of it, and the keyboard reaches it", async () => {
  const own = await visitor(browser, cluster.url, { viewport: { width: 360, height: 740 } });
  const page = await own.open(`jobs/${first}`);
  await page.locator(".plot").first().waitFor();
  for (const route of [`jobs/${first}`, `jobs/${paired}?tab=pairs`, "jobs", "cluster", "queues"]) {
    await page.goto(`${cluster.url}/#/${route}`);
    await page.locator("h1").waitFor();
    const [wide, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(wide <= screen, `${route} is ${wide} pixels wide on a screen of ${screen}`);
  }
  await page.reload();
  await page.locator("h1").waitFor();
  await page.keyboard.press("Tab");
  await eventually("the way to the content comes first", () => page.evaluate(() => document.activeElement?.className === "skip"));
  await own.close();
  assert.deepEqual(own.trouble, []);
});

test("over TLS with tokens a viewer sees no action, and an admin does", async () => {
  const job = lone.submit(spec("guarded"));
  const viewer = await visitor(browser, lone.url);
  const page = await viewer.open(`jobs/${job}`);
  await page.getByLabel("Token").waitFor();
  assert.deepEqual(await faults(page, "login"), []);
  // What is refused without a token is in no console of a mistake.
  await page.getByLabel("Token").fill("a-token-that-nobody-gave-out");
  await page.getByRole("button", { name: "Sign in", exact: true }).click();
  await page.getByRole("alert").waitFor();
  await page.getByLabel("Token").fill(lone.tokens.viewer);
  await page.getByRole("button", { name: "Sign in", exact: true }).click();
  await page.getByRole("heading", { name: job }).waitFor();
  await badge(page, "queued").waitFor();
  await page.getByText("vera").waitFor();
  for (const name of ["Pause", "Cancel", "Delete", "Resume", "Retry"]) {
    assert.equal(await page.getByRole("button", { name }).count(), 0, name);
  }
  assert.equal(await page.getByRole("link", { name: "Cluster" }).count(), 0);
  await page.goto(`${lone.url}/#/jobs/${job}?tab=notes`);
  assert.equal(await page.getByLabel("Add a note").count(), 0);
  const kept = await page.evaluate(() => [localStorage.length, document.cookie, sessionStorage.length]);
  assert.deepEqual(kept, [0, "", 1], "the token is kept for the tab alone");
  const protocol = await page.evaluate(() => performance.getEntriesByType("navigation")[0].nextHopProtocol);
  assert.equal(protocol, "h2");
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Token").fill(lone.tokens.admin);
  await page.getByRole("button", { name: "Sign in", exact: true }).click();
  await page.getByRole("link", { name: "Cluster" }).waitFor();
  await page.goto(`${lone.url}/#/jobs/${job}`);
  await page.getByRole("button", { name: "Pause" }).waitFor();
  await viewer.close();
  assert.deepEqual(viewer.trouble, []);
});

test("a login at an identity provider leads back to where one was, and leaves nothing in the address", async () => {
  const job = lone.submit(spec("elsewhere"));
  const person = await visitor(browser, lone.url, { others: [provider.host] });
  const page = await person.open(`jobs/${job}?tab=spec`);
  await page.getByRole("button", { name: `Sign in at ${provider.host}` }).click();
  await page.getByRole("heading", { name: job }).waitFor();
  await page.getByText("olga").waitFor();
  await page.getByRole("button", { name: "Pause" }).waitFor();
  assert.equal(page.url(), `${lone.url}/#/jobs/${job}?tab=spec`);
  assert.deepEqual(await page.evaluate(() => Object.keys(sessionStorage)), ["crescendo.token"]);
  // A code that somebody else sends here.
  await page.goto(`${lone.url}/?code=stolen&state=made-up#/jobs`);
  await page.getByText("was not begun in this tab").waitFor();
  assert.equal(page.url(), `${lone.url}/`);
  await person.close();
  assert.deepEqual(person.trouble, []);
});

test("nothing was noticed that should not be", () => {
  assert.deepEqual(me.trouble, []);
});
