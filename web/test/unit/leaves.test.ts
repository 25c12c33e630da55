import assert from "node:assert/strict";
import { test } from "node:test";
import { differences, leaves } from "../../src/leaves.ts";

const spec = (steps: number, extra = "") => `apiVersion: crescendo/v1
metadata:
  name: a${steps}
  labels:
    team: vision
spec:
  model:
    preset: nano
  stages:
    - name: stage-1
      data:
        source: compose
        prompts:
          - "a: b"
          - plain
      train:
        steps: ${steps}
        betas: [0.9, 0.999]
    - name: stage-2
      train:
        steps: 7
${extra}  checkpoints:
    every: 80
`;

test("fields have their paths, through lists and out of them", () => {
  const found = leaves(spec(5));
  assert.deepEqual([...found.entries()], [
    ["apiVersion", "crescendo/v1"],
    ["metadata.name", "a5"],
    ["metadata.labels.team", "vision"],
    ["spec.model.preset", "nano"],
    ["spec.stages[0].name", "stage-1"],
    ["spec.stages[0].data.source", "compose"],
    ["spec.stages[0].data.prompts[0]", '"a: b"'],
    ["spec.stages[0].data.prompts[1]", "plain"],
    ["spec.stages[0].train.steps", "5"],
    ["spec.stages[0].train.betas", "[0.9, 0.999]"],
    ["spec.stages[1].name", "stage-2"],
    ["spec.stages[1].train.steps", "7"],
    ["spec.checkpoints.every", "80"],
  ]);
});

test("what differs is told, and the name is not", () => {
  const specs = [leaves(spec(5)), leaves(spec(6, "  priority: 3\n"))];
  assert.deepEqual(differences(specs), [
    { path: "spec.stages[0].train.steps", values: ["5", "6"] },
    { path: "spec.priority", values: [undefined, "3"] },
  ]);
  assert.deepEqual(differences([leaves(spec(5)), leaves(spec(5))]), []);
});
