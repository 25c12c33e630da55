// Makes the pictures of docs/web.md, from a cluster that runs real jobs: node test/e2e/pictures.mjs
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { launch, visitor } from "./browser.mjs";
import { ROOT, eventually, spec, up } from "./cluster.mjs";

/** Jobs are small, and machines slow. */
const LIMIT_MILLIS = 600_000;
const folder = mkdtempSync(join(tmpdir(), "crescendo-pictures-"));
const into = (name) => join(ROOT, "docs/pictures", `web-${name}.png`);
const [browser, cluster] = await Promise.all([launch(), up(folder)]);
try {
  const job = (name, options) => cluster.submit(spec(name, options));
  const fast = job("cats", { steps: 160, rate: "1e-3" });
  const slow = job("cats", { steps: 160, rate: "1e-4" });
  const filtered = job("rings", { steps: 400, pairs: 64, similarity: [0.6, 0.97] });
  const drawn = job("cups", { steps: 160, samples: "heldOut: 2, pictures: 2, validationPairs: 8, draw: {steps: 12, trueCfg: 3}" });
  job("broken", { subjects: "/data/subjects-v3" });
  const ended = (id) => eventually(`${id} ends`, () => cluster.get(id).state === "succeeded", LIMIT_MILLIS);
  await Promise.all([ended(fast), ended(slow), ended(drawn)]);
  const long = job("products", { steps: 4000, stages: 2, rate: "5e-4" });
  const other = job("portraits", { steps: 6000, stages: 2, rate: "3e-4" });
  job("nightly", { steps: 5000 });
  cluster.cli("note", long, "the one with the new captions");
  await eventually("it trains a while", () => Number(cluster.get(long).stages[0].step) > 120, LIMIT_MILLIS);
  const own = await visitor(browser, cluster.url, { viewport: { width: 1180, height: 760 } });
  const shoot = async (page, name, route, ready, height = 760) => {
    await page.setViewportSize({ width: 1180, height });
    await page.goto(`${cluster.url}/#/${route}`);
    await page.locator(ready).first().waitFor();
    // What is live settles.
    await page.waitForTimeout(1500);
    await page.screenshot({ path: into(name) });
  };
  const page = await own.open("jobs");
  await shoot(page, "jobs", "jobs", "tbody tr:nth-child(5)");
  await shoot(page, "job", `jobs/${long}`, ".plot canvas");
  await shoot(page, "compare", `compare?jobs=${fast},${slow}`, ".plot canvas");
  await shoot(page, "pairs", `jobs/${filtered}?tab=pairs`, ".pair:nth-child(1) img");
  await shoot(page, "samples", `jobs/${drawn}?tab=samples`, ".samples tr:nth-child(4) img", 960);
  await shoot(page, "cluster", "cluster", "tbody tr");
  const dark = await visitor(browser, cluster.url, { viewport: { width: 1180, height: 760 }, colorScheme: "dark" });
  await shoot(await dark.open("jobs"), "log", `jobs/${other}?tab=log`, ".entry");
} finally {
  await browser.close();
  await cluster.stop();
  rmSync(folder, { recursive: true, force: true });
}
