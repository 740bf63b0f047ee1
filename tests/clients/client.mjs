// npm's consul against a server: register, watch, lock, recurse, transact. Usage: client.mjs ADDRESS.
// The modules are in $CLIENTS_NODE/node_modules; $MEMBERS is how many agents there are.
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.env.CLIENTS_NODE, "package.json"));
const loaded = require("consul");
const Consul = loaded.default ?? loaded;
const consul = new Consul({ host: process.argv[2], port: 8500 });
let failed = 0;

function check(name, got, wanted) {
  if (JSON.stringify(got) === JSON.stringify(wanted)) {
    console.log(`ok    npm consul: ${name}`);
  } else {
    failed += 1;
    console.log(`FAIL  npm consul: ${name}: got ${JSON.stringify(got)}, wanted ${JSON.stringify(wanted)}`);
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(what, wanted, ms = 10_000) {
  const end = Date.now() + ms;
  let got = await what();
  while (JSON.stringify(got) !== JSON.stringify(wanted) && Date.now() < end) {
    await pause(50);
    got = await what();
  }
  return got;
}

const passing = async (service) =>
  (await consul.health.service({ service, passing: true })).map((entry) => entry.Service.ID);

// The library's own watch: a loop of blocking queries.
const changes = [];
const watch = consul.watch({ method: consul.health.service, options: { service: "jsweb", wait: "5s" } });
watch.on("change", (data) => changes.push(data.map((entry) => entry.Service.ID)));
watch.on("error", (error) => check("the watch has no error", String(error), ""));
await until(async () => changes.length > 0, true);

await consul.agent.service.register({
  id: "jsweb-1",
  name: "jsweb",
  port: 9090,
  tags: ["v1"],
  check: { ttl: "30s" },
});
check("a watch sees the registration", await until(async () => changes.at(-1), ["jsweb-1"]), ["jsweb-1"]);
check("a TTL check begins critical", await passing("jsweb"), []);
await consul.agent.check.pass({ id: "service:jsweb-1", note: "beating" });
check("and passes when it beats", await until(() => passing("jsweb"), ["jsweb-1"]), ["jsweb-1"]);
check("the agent lists the service", (await consul.agent.service.list())["jsweb-1"].Port, 9090);
check("the catalog has its address", (await consul.catalog.service.nodes("jsweb"))[0].ServicePort, 9090);
check("members", (await consul.agent.members()).length, Number(process.env.MEMBERS));
check("self", (await consul.agent.self()).Config.Datacenter, "dc1");
await consul.agent.service.deregister("jsweb-1");
check("a watch sees it go", await until(async () => changes.at(-1), []), []);
watch.end();

check("set", await consul.kv.set("js/a", "one"), true);
check("get", (await consul.kv.get("js/a")).Value, "one");
check("a missing key", await consul.kv.get("js/none"), undefined);
check("set with flags", await consul.kv.set({ key: "js/b", value: "two", flags: 7 }), true);
const tree = await consul.kv.get({ key: "js/", recurse: true });
check("recurse", tree.map((k) => [k.Key, k.Flags]), [["js/a", 0], ["js/b", 7]]);
check("keys", await consul.kv.keys("js/"), ["js/a", "js/b"]);
// The library hands a refusal on as no value at all.
check("cas 0 on an existing key", Boolean(await consul.kv.set({ key: "js/a", value: "x", cas: "0" })), false);
check("and the value is as it was", (await consul.kv.get("js/a")).Value, "one");

const { ID: first } = await consul.session.create({ name: "js-first", lockdelay: "0s", ttl: "30s" });
const { ID: second } = await consul.session.create({ name: "js-second", lockdelay: "0s" });
check("acquire", await consul.kv.set({ key: "js/lock", value: "1", acquire: first }), true);
check("it is exclusive", Boolean(await consul.kv.set({ key: "js/lock", value: "2", acquire: second })), false);
check("the holder is named", (await consul.kv.get("js/lock")).Session, first);
check("renew", (await consul.session.renew(first))[0].ID, first);
check("release", await consul.kv.set({ key: "js/lock", value: "", release: first }), true);
check("then the other gets it", await consul.kv.set({ key: "js/lock", value: "2", acquire: second }), true);
await consul.session.destroy(second);
check("a destroyed session lets go", (await consul.kv.get("js/lock")).Session, undefined);
await consul.session.destroy(first);

const answer = await consul.transaction.create([
  { KV: { Verb: "set", Key: "js/txn", Value: Buffer.from("in txn").toString("base64") } },
  { KV: { Verb: "get", Key: "js/txn" } },
]);
check("txn", answer.Results.length, 2);

check("delete the tree", await consul.kv.del({ key: "js/", recurse: true }), true);
check("nothing is left", await consul.kv.keys("js/").catch((error) => error.statusCode), 404);
check("status", (await consul.status.leader()).endsWith(":8300"), true);
process.exit(failed ? 1 : 0);
