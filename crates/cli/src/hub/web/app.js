// The hub's page: asks for the state, listens to events, and writes both as text only.
"use strict";

const at = (id) => document.getElementById(id);

function row(...cells) {
  const tr = document.createElement("tr");
  for (const cell of cells) {
    const td = document.createElement("td");
    td.textContent = cell === undefined || cell === null ? "" : String(cell);
    tr.append(td);
  }
  return tr;
}

function list(id, pairs) {
  const all = [];
  for (const [name, value] of pairs) {
    const dt = document.createElement("dt");
    const dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = value === undefined || value === null ? "–" : String(value);
    all.push(dt, dd);
  }
  at(id).replaceChildren(...all);
}

function health(status) {
  const faults = [];
  const { read_only: stuck, shared } = status.hub.registry;
  if (stuck) faults.push(shared ? "no majority of the cluster: nothing can be changed" : "the registry's store cannot be written");
  if (status.cluster && !status.leader) faults.push("the cluster has no leader: no new claims");
  if (status.fault) faults.push(status.fault);
  at("health").textContent = faults.length ? faults.join("; ") : "all is well";
  at("health").className = faults.length ? "bad" : "good";
}

let last = null;

function show() {
  if (!last) return;
  const { status, agents, networks, more } = last;
  const hub = status.hub;
  health(status);
  list("hub", [
    ["Version", hub.version],
    ["Running for", hub.uptime_s + " s"],
    ["Nodes, names", hub.registry.nodes + ", " + hub.registry.names],
    ["Requests, refused", hub.registry.requests + ", " + hub.registry.errors],
    ["Claims, records", hub.claims.claims + ", " + hub.claims.records],
    ["Beacon", hub.beacon.registered + " nodes, " + hub.beacon.relays + " relayed"],
    ["Index", hub.index ? hub.index.agents + " agents, " + hub.index.groups + " holders of groups" : "none"],
    ["Stores", hub.stores.map((store) => store.name + " " + store.bytes + " bytes").join(", ")],
  ]);
  at("cluster-part").hidden = !status.cluster;
  if (status.cluster) {
    list("cluster", [["Cluster", status.cluster], ["This node", status.id + " (" + status.role + ")"],
      ["Leader", status.leader], ["Term", status.term], ["Applied", status.applied]]);
    at("members").replaceChildren(...(status.members || []).map((member) => row(member.id, member.endpoint,
      member.voter ? "voter" : "learner", member.matched == null ? "" : status.last_log - member.matched)));
  }
  const wanted = at("filter").value.toLowerCase();
  const text = (agent) => [agent.hostname, agent.address, ...(agent.tags || [])].join(" ").toLowerCase();
  const shown = agents.filter((agent) => text(agent).includes(wanted));
  at("agent-count").textContent = shown.length + " of " + hub.registry.nodes + (more ? " (not all are shown)" : "");
  at("agents").replaceChildren(...shown.map((agent) => row(agent.hostname, agent.address,
    (agent.offline ? "silent" : "here") + (agent.public ? "" : ", private"), (agent.tags || []).join(" "), agent.last_seen)));
  at("networks").replaceChildren(...networks.map((network) => row(network.name,
    network.id === undefined ? network.network_id : network.id, network.join_rule,
    Array.isArray(network.members) ? network.members.length : network.member_count === undefined ? network.members : network.member_count)));
}

async function ask() {
  try {
    const reply = await fetch("/api/state");
    last = await reply.json();
    show();
  } catch {
    at("health").textContent = "the hub does not answer";
    at("health").className = "bad";
  }
}

function listen() {
  const source = new EventSource("/api/events");
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    const li = document.createElement("li");
    const time = document.createElement("time");
    time.textContent = new Date(event.time * 1000).toLocaleTimeString();
    li.append(time, event.text);
    at("events").prepend(li);
    while (at("events").children.length > 256) at("events").lastChild.remove();
    ask();
  };
}

at("filter").addEventListener("input", show);
ask();
setInterval(ask, 5000);
listen();
