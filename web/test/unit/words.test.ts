import assert from "node:assert/strict";
import { test } from "node:test";
import { bytes, duration, figure, percent } from "../../src/format.ts";
import { labelsOf } from "../../src/labels.ts";
import { href, parse } from "../../src/route.ts";
import { covers } from "../../src/roles.ts";

test("numbers and times read well", () => {
  assert.deepEqual([0, 3.2, 59, 61, 3600, 90061].map(duration), ["0 s", "3 s", "59 s", "1 min 1 s", "1 h", "1 d 1 h"]);
  assert.equal(duration(Number.NaN), "–");
  assert.deepEqual([0, 0.123456, 1234567, 12345, 0.0001, Number.NaN].map(figure), ["0", "0.1235", "1.23e+6", "12,345", "1.00e-4", "–"]);
  assert.deepEqual([0, 999, 1000, 4_600_000n, 2e13].map(bytes), ["0 B", "999 B", "1.00 kB", "4.60 MB", "20.0 TB"]);
  assert.equal(percent(0.256), "26 %");
});

test("labels are read as they are written", () => {
  assert.deepEqual(labelsOf("team=research, nightly  a=b=c"), { team: "research", nightly: "", a: "b=c" });
  assert.deepEqual(labelsOf("  "), {});
});

test("an address says what it was made of, whatever is in it", () => {
  const evil = "a/b?c#d <img>";
  const route = parse(href(["jobs", evil], { tab: "log", none: "" }));
  assert.deepEqual(route.path, ["jobs", evil]);
  assert.deepEqual([...route.query], [["tab", "log"]]);
  assert.deepEqual(parse("#/jobs/%zz").path, ["jobs", "%zz"]);
  assert.deepEqual(parse("").path, []);
});

test("roles include those before them, and a node's none", () => {
  assert.ok(covers("admin", "submitter") && covers("submitter", "viewer"));
  assert.ok(!covers("viewer", "submitter") && !covers("node", "viewer") && !covers("", "viewer"));
});
