// A browser that notices what should not be: errors in the console, calls to other hosts, violations of WCAG.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
export async function launch() {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", timeout: 60_000 });
}

/** Tabs of one visitor. `trouble` is what was noticed. */
export async function visitor(browser, base, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ignoreHTTPSErrors: true, ...options });
  context.setDefaultTimeout(60_000);
  const trouble = [];
  const host = new URL(base).host;
  context.on("request", (request) => {
    const url = new URL(request.url());
    if (url.protocol !== "blob:" && url.host !== host) trouble.push(`asked another host: ${url}`);
  });
  const open = async (route) => {
    const page = await context.newPage();
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) trouble.push(`console: ${message.text()}`);
    });
    page.on("pageerror", (error) => trouble.push(`error: ${error.stack}`));
    page.on("dialog", (dialog) => {
      trouble.push(`a dialog opened: ${dialog.message()}`);
      void dialog.dismiss();
    });
    await page.goto(`${base}/#/${route}`);
    return page;
  };
  return { context, open, trouble, close: () => context.close() };
}

/** What axe finds on a page; the contrast that it leaves open, of what is scrolled or overlapped, is worked out here. */
export async function faults(page, what) {
  await page.evaluate(axe);
  const { violations, open } = await page.evaluate(judged);
  return [...violations.map((fault) => `${what}: ${fault}`), ...open.map((fault) => `${what}, left open: ${fault}`)];
}

/** Runs in the page. */
async function judged() {
  const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
  const { violations, incomplete } = await globalThis.axe.run(document, { runOnly: tags });
  const words = (found) =>
    found.flatMap(({ id, help, nodes }) => nodes.map(({ target, failureSummary }) => `${id} (${help}): ${target.join(" ")}\n${failureSummary}`));
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  /** A colour of CSS over another, as red, green and blue. */
  const over = (colour, below) => {
    canvas.fillStyle = `rgb(${below.join(" ")})`;
    canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const behind = (element) => (element ? over(getComputedStyle(element).backgroundColor, behind(element.parentElement)) : [255, 255, 255]);
  const luminance = (colour) => {
    const [red, green, blue] = colour.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (target) => {
    const element = document.querySelector(target);
    const back = behind(element);
    const [dark, light] = [luminance(over(getComputedStyle(element).color, back)), luminance(back)].sort((left, right) => left - right);
    return (light + 0.05) / (dark + 0.05);
  };
  const isEnough = ({ target }) => contrast(target.at(-1)) >= 4.5;
  const open = incomplete.map((found) => (found.id === "color-contrast" ? { ...found, nodes: found.nodes.filter((node) => !isEnough(node)) } : found));
  return { violations: words(violations), open: words(open) };
}

/** How far things have moved by themselves since the page was opened. */
export async function shifted(page) {
  return page.evaluate(
    () =>
      new Promise((done) => {
        let sum = 0;
        new PerformanceObserver((list) => {
          for (const entry of list.getEntries()) if (!entry.hadRecentInput) sum += entry.value;
        }).observe({ type: "layout-shift", buffered: true });
        requestAnimationFrame(() => requestAnimationFrame(() => done(sum)));
      }),
  );
}
