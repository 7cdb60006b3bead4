// Drives two daemons with the reference's Node SDK and checks what each call gives. The words and the environment are
// those of session.py; SESSION_SDK is the folder of the built package. Every call of this SDK blocks its thread.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { isMainThread, parentPort, Worker } from "node:worker_threads";

const env = process.env;
const { Driver, PilotError } = await import(`${env.SESSION_SDK}/dist/index.js`);
const [A, B] = [env.SESSION_A_ADDRESS, env.SESSION_B_ADDRESS];
const [A_ID, B_ID] = [A, B].map((text) => parseInt(text.split(":")[1].split(".").slice(1).join(""), 16));
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const sha256 = (data) => createHash("sha256").update(data).digest("hex");
let checks = 0;

function ok(name) {
  checks += 1;
  console.log("ok", name);
}

/** Whether `got` has everything that is in `wanted`. */
function holds(got, wanted) {
  if (Array.isArray(wanted)) {
    return Array.isArray(got) && got.length === wanted.length && wanted.every((value, at) => holds(got[at], value));
  }
  if (wanted !== null && typeof wanted === "object") {
    return got !== null && typeof got === "object" && Object.keys(wanted).every((key) => holds(got[key], wanted[key]));
  }
  return got === wanted;
}

function says(name, got, wanted) {
  assert(holds(got, wanted), `${name}: ${JSON.stringify(got)} instead of ${JSON.stringify(wanted)}`);
  ok(name);
  return got;
}

function refused(name, call, words = "") {
  assert.throws(call, (error) => error instanceof PilotError && error.message.includes(words), `${name}: ${words}`);
  ok(name);
}

async function until(name, call, wanted) {
  const deadline = Date.now() + 40_000;
  for (;;) {
    const got = call();
    if (holds(got, wanted) || Date.now() > deadline) return says(name, got, wanted);
    await sleep(100);
  }
}

function readAll(conn, count) {
  const chunks = [];
  for (let left = count; left > 0; left -= chunks.at(-1).length) chunks.push(conn.read(Math.min(left, 65536)));
  return Buffer.concat(chunks);
}

function profile(a, b) {
  says("info", a.info(), { node_id: A_ID, address: A, hostname: "anode", encrypt: true, identity: true });
  says("resolveHostname", a.resolveHostname("bnode"), { node_id: B_ID, address: B, public: true });
  refused("resolveHostname of nobody", () => a.resolveHostname("nobody"), "hostname");
  refused("no daemon", () => new Driver("/nonexistent/pilot.sock"));
  says("setHostname", a.setHostname("scripted"), { node_id: A_ID, hostname: "scripted" });
  says("the new name", b.resolveHostname("scripted"), { node_id: A_ID });
  says("setHostname again", a.setHostname("anode"), { hostname: "anode" });
  says("setTags", a.setTags(["red", "blue"]), { node_id: A_ID, tags: ["red", "blue"] });
  says("setTags of none", a.setTags([]), { type: "set_tags_ok" });
  says("setVisibility private", a.setVisibility(false), { visibility: "private" });
  refused("a private node", () => b.resolveHostname("anode"));
  says("setVisibility public", a.setVisibility(true), { visibility: "public" });
  says("setTaskExec", a.setTaskExec(true), { node_id: A_ID, task_exec: true });
  says("setTaskExec off", a.setTaskExec(false), { task_exec: false });
  says("setWebhook", a.setWebhook("http://127.0.0.1:9/"), { webhook: "http://127.0.0.1:9/" });
  says("setWebhook of none", a.setWebhook(""), { webhook: "" });
}

function streams(a, b) {
  const listener = b.listen(7100);
  refused("listen twice", () => b.listen(7100), "already bound");
  const client = a.dial(`${B}:7100`);
  const server = listener.accept();
  says("write", client.write("from a"), 6);
  says("read", readAll(server, 6).toString(), "from a");
  const whole = randomBytes(200_000);
  server.write(whole);
  says("200 kB back", sha256(readAll(client, whole.length)), sha256(whole));
  const listed = a.info().conn_list.filter((c) => c.remote_port === 7100 && c.state === "ESTABLISHED");
  says("the connection in the list", listed, [{ remote_addr: B }]);
  a.disconnect(listed[0].id);
  refused("read after disconnect", () => server.read(10), "EOF");
  client.close();
  server.close();
  refused("read after close", () => client.read(10), "closed");
  listener.close();
  const echo = a.dial(`${B}:7`);
  echo.write("hello");
  says("echo", readAll(echo, 5).toString(), "hello");
  echo.close();
  refused("dial to a closed port", () => a.dial(`${B}:4999`), "dial");
  b.sendTo(`${A}:7200`, Buffer.from("datagram"));
  const data = Buffer.from("datagram").toString("base64");
  says("sendTo and recvFrom", a.recvFrom(), { src_addr: B, dst_port: 7200, data });
}

async function trust(a, b) {
  says("pendingHandshakes", b.pendingHandshakes(), { pending: [] });
  says("handshake", a.handshake(B_ID, "a script"), { node_id: B_ID, status: "sent" });
  await until("the request", () => b.pendingHandshakes(), { pending: [{ node_id: A_ID, justification: "a script" }] });
  says("rejectHandshake", b.rejectHandshake(A_ID, "no"), { node_id: A_ID, status: "rejected" });
  a.handshake(B_ID, "again");
  await until("asked again", () => b.pendingHandshakes(), { pending: [{ node_id: A_ID, justification: "again" }] });
  says("approveHandshake", b.approveHandshake(A_ID), { node_id: A_ID, status: "approved" });
  await until("trustedPeers", () => a.trustedPeers(), { trusted: [{ node_id: B_ID, mutual: true }] });
  says("revokeTrust", a.revokeTrust(B_ID), { node_id: B_ID, status: "revoked" });
  // The reference does not always tell the other side.
  if (env.SESSION_OURS) await until("trustedPeers after that", () => b.trustedPeers(), { trusted: [] });
}

async function services(a, b) {
  for (const [kind, word, data] of [["text", "TEXT", "plain"], ["json", "JSON", '{"n":1}'], ["binary", "BINARY", "\0"]]) {
    says(`sendMessage ${kind}`, a.sendMessage("bnode", data, kind), { ack: `ACK ${word} ${data.length} bytes` });
  }
  const [path, data] = [`${env.HOME}/scripted.bin`, randomBytes(300_000)];
  writeFileSync(path, data);
  says("sendFile", a.sendFile(B, path), { sent: data.length, filename: "scripted.bin" });
  const stored = readdirSync(env.SESSION_B_RECEIVED).find((name) => name.includes("scripted"));
  says("the stored file", sha256(readFileSync(`${env.SESSION_B_RECEIVED}/${stored}`)), sha256(data));
  const reader = new Worker(new URL(import.meta.url));
  let event = null;
  reader.on("message", (got) => (event = got));
  while (event === null) {
    says("publishEvent", a.publishEvent("bnode", "news", "it happened"), { topic: "news", bytes: 11 });
    await sleep(300);
  }
  says("subscribeEvent", event, { topic: "news", data: "it happened" });
  b.setTaskExec(true);
  const task = { task_id: "6f1c2a52-0e0b-4b5c-9d2e-0a1b2c3d4e5f", task_description: "count to ten" };
  says("submitTask", a.submitTask("bnode", task), { status: 200, task_id: task.task_id });
}

/** In a thread of its own: the first event. */
function subscribe() {
  const driver = new Driver(env.SESSION_A_SOCKET);
  driver.subscribeEvent("bnode", "news", (topic, data) => {
    parentPort.postMessage({ topic, data: data.toString() });
    throw new Error("EOF: one is enough");
  }, 60);
  driver.close();
}

async function main() {
  const [a, b] = [new Driver(env.SESSION_A_SOCKET), new Driver(env.SESSION_B_SOCKET)];
  profile(a, b);
  streams(a, b);
  await services(a, b);
  await trust(a, b);
  says("deregister", a.deregister(), { type: "deregister_ok" });
  refused("a node that left", () => b.resolveHostname("anode"));
  a.close();
  b.close();
  refused("a closed driver", () => a.info());
  console.log("done", checks);
}

if (isMainThread) {
  await main();
  process.exit(0);
} else {
  subscribe();
}
