// Opens workflows in ComfyUI's editor, and compares what it would send with what it should: for workflow_in_comfyui.py.
//
//     CHROMIUM=PATH node tests/peers/open_in_comfyui.mjs URL CASES
//
// CASES is a JSON file with a list of {name, editor, prompt}. playwright-core is the web page's.
import fs from "node:fs";
import { createRequire } from "node:module";
import { isDeepStrictEqual } from "node:util";

const { chromium } = createRequire(new URL("../../web/package.json", import.meta.url))("playwright-core");
const [url, cases] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM });
try {
  const page = await browser.newPage();
  await page.goto(url);
  // Until it has opened what it begins with, it opens nothing else.
  const isReady = () => window.app?.vueAppReady && window.app.extensionManager?.workflow?.activeWorkflow;
  await page.waitForFunction(isReady, null, { timeout: 120_000 });
  const kinds = await page.evaluate(async () => Object.keys(await (await fetch("/object_info")).json()));
  const knows = (all) => all.every((kind) => window.LiteGraph.registered_node_types[kind]);
  await page.waitForFunction(knows, kinds, { timeout: 120_000 });
  for (const { name, editor, prompt } of JSON.parse(fs.readFileSync(cases, "utf8"))) {
    const sent = await page.evaluate(async (graph) => {
      await window.app.loadGraphData(graph);
      return (await window.app.graphToPrompt()).output;
    }, editor);
    // Newer editors add where a node is from.
    for (const node of Object.values(sent)) delete node._meta.cnr_id;
    if (!isDeepStrictEqual(sent, prompt)) throw new Error(`${name}: the editor sends ${JSON.stringify(sent)}`);
    console.log(`workflow, ${name}: opened in the editor`);
  }
} finally {
  await browser.close();
}
