// Bees in JavaScript, one for each behaviour that the engine's tests look at.

import { get, put, delete as remove } from "skep:bee/state@0.1.0";
import { begin } from "skep:bee/step@0.1.0";

const DONE = { tag: "done" };
const bytes = (text) => new TextEncoder().encode(text);
const text = (payload) => new TextDecoder().decode(payload);
const answer = (said) => ({ publish: [], respond: [bytes(said)], disposition: DONE });

let calls = 0;

const echo = ({ key, headers, payload }) => ({
  publish: [{ to: undefined, key, headers, payload }],
  respond: [payload],
  disposition: DONE,
});

function choosy(message) {
  const dispositions = {
    reject: { tag: "reject", val: "not today" },
    later: { tag: "retry-after", val: 1500n },
    fail: { tag: "fail", val: { reason: "it broke", detail: "in JavaScript" } },
  };
  const disposition = dispositions[text(message.payload)];
  return disposition ? { publish: [], respond: [], disposition } : echo(message);
}

function count() {
  const stored = get("n");
  const n = (stored ? Number(text(stored)) : 0) + 1;
  put("n", bytes(String(n)));
  return answer(String(n));
}

function forget() {
  put("n", bytes("1"));
  remove("n");
  return answer(String(get("n")));
}

function tooLarge() {
  try {
    put("n", new Uint8Array(512 << 10));
  } catch (e) {
    return answer(`${e.payload.tag} ${e.payload.val}`);
  }
}

// How often this instance has been called before.
const fixed = () => answer(String(calls++));

function fling({ payload }) {
  throw new Error(`the hive is on fire: ${text(payload)}`);
}

function work({ payload }) {
  for (let n = Number(text(payload)); n > 0; n--);
  return answer("done");
}

function loop() {
  for (;;);
}

function bomb() {
  const kept = [];
  for (;;) kept.push(new Uint8Array(1 << 20).fill(1));
}

// Meets the bound of its memory and lives on.
function survivor() {
  let kept = [];
  try {
    for (;;) kept.push(new Uint8Array(1 << 20).fill(1));
  } catch {
    const mebibytes = kept.length;
    kept = [];
    return answer(`${mebibytes} MiB`);
  }
}

const BEES = {
  echo,
  choosy,
  count,
  forget,
  "too-large": tooLarge,
  static: fixed,
  throw: fling,
  work,
  loop,
  bomb,
  survivor,
};

export const handler = {
  bees: () => Object.keys(BEES).map((name) => ({ name })),
  process: (bee, inputs) =>
    inputs.map((input, index) => {
      begin(index);
      return BEES[bee](input.val);
    }),
};
