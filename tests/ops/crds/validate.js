// Judge each custom resource of the JSON array on standard input by its published schema: one line
// per fault on standard output, and exit code 1 if there is any.
//
// The schemas let unknown fields pass, as the API server does by dropping them, so a misspelt field
// would do nothing and say nothing. Here a field that no rule of the schema ever reads is a fault.
import { readFileSync } from "node:fs";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor";
import { PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule";

const MODELS = [PodMonitor, PrometheusRule, ScaledObject];

function watched(value, path, unread) {
  if (value === null || typeof value !== "object") return value;
  const isList = Array.isArray(value);
  const inner = isList ? [] : {};
  for (const [key, part] of Object.entries(value)) {
    const name = `${path}/${key}`;
    inner[key] = watched(part, name, unread);
    if (!isList) unread.add(name);
  }
  return new Proxy(inner, {
    get(target, key) {
      unread.delete(`${path}/${String(key)}`);
      return target[key];
    },
  });
}

function faults(resource) {
  const kind = `${resource.apiVersion} ${resource.kind}`;
  const Model = MODELS.find((model) => model.is(resource));
  if (!Model) return [`no schema for ${kind}`];
  const unread = new Set();
  const found = [];
  try {
    // Not on an instance: its constructor copies, and so reads, every field.
    Model.prototype.validate.call(watched(resource, "", unread));
  } catch (error) {
    found.push(error.message);
  }
  found.push(...[...unread].map((name) => `${name.slice(1)}: no such field`));
  return found.map((fault) => `${kind} ${resource.metadata?.name}: ${fault}`);
}

const found = JSON.parse(readFileSync(0, "utf8")).flatMap(faults);
for (const fault of found) console.log(fault);
process.exitCode = found.length === 0 ? 0 : 1;
