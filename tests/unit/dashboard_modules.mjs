// Tests of what the dashboard's pages compute; test_dashboard_modules.py runs them. The first argument is the folder app/.
import assert from "node:assert/strict";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const from = (name) => import(new URL(name, pathToFileURL(`${process.env.APP}/`)));
globalThis.location = { hash: "" };
const { Rates } = await from("rates.js");
const { layout, WIDTH, HEIGHT } = await from("map/layout.js");
const { arrowOf, byArrow, graph, part } = await from("map/graph.js");
const router = await from("router.js");
const format = await from("ui/format.js");

const edge = (more) => ({ seen: "asked", block: "state", from: "a", target: "store", app: "a", count: 0, errors: 0, seconds: 0, longest: 0, buckets: new Array(13).fill(0), ...more });
const told = (...edges) => ({ at: 0, seconds: 1, edges });
const counted = (at, count, more) => edge({ count, longest: 4, buckets: Object.assign(new Array(13).fill(0), { [at]: count }), ...more });

test("rates are those of the last ten seconds, and quantiles lie within their bucket", () => {
  const rates = new Rates();
  for (let second = 0; second < 20; second++) rates.add(told(counted(4, 9), counted(7, 1, { errors: 1 })));
  const now = rates.figures(rates.where(() => true));
  assert.deepEqual([now.rate, now.errorRate, now.count, now.failing], [10, 1, 100, 0.1]);
  assert.ok(now.p50 > 0.01 && now.p50 < 0.02, String(now.p50));
  assert.ok(now.p95 > 0.1 && now.p95 <= 0.2, String(now.p95));
});

test("seconds in which nothing passed count as such, and edges of old are forgotten", () => {
  const rates = new Rates();
  rates.add(told(counted(2, 30)));
  for (let second = 0; second < 4; second++) rates.add(told());
  const all = rates.where(() => true);
  assert.equal(rates.figures(all).rate, 6);
  assert.deepEqual(rates.series(all), [30, 0, 0, 0, 0]);
  for (let second = 0; second < 10; second++) rates.add(told());
  assert.deepEqual([rates.figures(all).rate, rates.figures(all).p95, rates.figures(all).total], [0, null, 30]);
  for (let second = 0; second < 70; second++) rates.add(told());
  assert.equal(rates.edges.size, 0);
});

test("a quantile in the last bucket is no more than the longest", () => {
  const rates = new Rates();
  rates.add(told(counted(12, 1, { longest: 7.5 })));
  const { p95 } = rates.figures(rates.where(() => true));
  assert.ok(p95 > 5 && p95 <= 7.5, String(p95));
});

test("what is seen belongs to one arrow", () => {
  const cases = [
    [{ seen: "asked", block: "pubsub", from: "a", target: "p/t/x", app: "a" }, "app:a\ntopic:p/t/x"],
    [{ seen: "arrived", block: "pubsub", from: "a", target: "p/t", app: "b" }, "topic:p/t\napp:b"],
    [{ seen: "asked", block: "invocation", from: "a", target: "b.default", app: "a" }, "app:a\napp:b"],
    [{ seen: "arrived", block: "invocation", from: "a", target: "b", app: "b" }, "app:a\napp:b"],
    [{ seen: "arrived", block: "invocation", from: "", target: "b", app: "b" }, null],
    [{ seen: "turn", block: "actors", from: "", target: "Courier/7", app: "b" }, "actor:Courier\napp:b"],
    [{ seen: "asked", block: "state", from: "", target: "store", app: "a" }, "app:a\ncomponent:store"],
    [{ seen: "arrived", block: "bindings", from: "", target: "cron", app: "b" }, "component:cron\napp:b"],
    [{ seen: "hosted", block: "state", from: "a", target: "store", app: "h" }, null],
    [{ seen: "asked", block: "state", from: "", target: "(other)", app: "a" }, null],
  ];
  for (const [seen, arrow] of cases) assert.equal(arrowOf(seen), arrow);
});

test("a call that is told by both sides is counted once", () => {
  const rates = new Rates();
  const call = { block: "invocation", from: "a", target: "b" };
  rates.add(told(counted(3, 5, { ...call, app: "a" }), counted(3, 5, { ...call, seen: "arrived", app: "b" })));
  assert.equal(rates.figures(byArrow(rates).get("app:a\napp:b")).count, 5);
});

/** A mesh of a chain of applications with topics between them, and a way back from the last to the first. */
function chain(length) {
  const topic = (at) => ({ component: "p", topic: `t${at}` });
  const apps = Array.from({ length }, (_, at) => ({ id: `a${at}`, instances: [], subscriptions: [{ ...topic((at + length - 1) % length), deadLetterTopic: "" }], published: [topic(at)], components: ["p", "s"], actors: [], methods: null }));
  return { apps, topics: [], components: [{ name: "p", type: "pubsub.mesh", apps: [] }, { name: "s", type: "state.mesh", apps: ["a0", `a${length - 1}`] }], problems: [] };
}

for (const down of [false, true]) {
  test(`nodes do not overlap, and arrows go ${down ? "down" : "right"}, but for one in each cycle`, () => {
    const whole = graph(chain(9), new Set());
    const placed = layout(whole, down);
    const boxes = [...placed.nodes.values()];
    assert.equal(boxes.length, 19);
    for (const [at, one] of boxes.entries()) {
      assert.ok(one.x >= 0 && one.y >= 0 && one.x + WIDTH <= placed.width && one.y + HEIGHT <= placed.height);
      for (const other of boxes.slice(at + 1)) assert.ok(Math.abs(one.x - other.x) >= WIDTH || Math.abs(one.y - other.y) >= HEIGHT, "two nodes overlap");
    }
    const way = down ? "y" : "x";
    const back = [...whole.arrows.values()].filter(({ from: one, target }) => placed.nodes.get(one)[way] >= placed.nodes.get(target)[way]);
    assert.equal(back.length, 1);
    assert.deepEqual([...placed.arrows.keys()].sort(), [...whole.arrows.keys()].sort());
  });
}

test("what arrows say covers nothing that another one says", () => {
  for (const count of [9, 10, 11]) {
    const nodes = new Map(Array.from({ length: count }, (_, at) => [`app:${at}`, { id: `app:${at}` }]));
    const joined = [[0, 7], [2, 8], [0, 3], [1, 8], [2, count - 1], [0, 1]].map((ends) => ends.map((at) => `app:${at}`));
    const arrows = new Map(joined.map(([from, target]) => [`${from}\n${target}`, { id: `${from}\n${target}`, from, target }]));
    const labels = [...layout({ nodes, arrows }).arrows.values()].map((each) => each.label);
    for (const one of labels) for (const other of labels) assert.ok(one === other || Math.abs(one.x - other.x) > 100 || Math.abs(one.y - other.y) > 18);
  }
});

test("a picture of a large mesh has the busiest, or what is sought with its neighbours", () => {
  const whole = graph(chain(200), new Set());
  const busy = part(whole, "", (id) => (id === "app:a7\ntopic:p/t7" ? 5 : 0), 60);
  assert.ok(busy.nodes.size <= 60 && busy.nodes.has("app:a7") && busy.nodes.has("topic:p/t7"));
  assert.deepEqual([...part(whole, "a150", () => 0, 60).nodes.keys()].sort(), ["app:a150", "topic:p/t149", "topic:p/t150"]);
  assert.equal(part(whole, "nowhere", () => 0, 60).nodes.size, 0);
  assert.ok([...busy.arrows.values()].every(({ from: one, target }) => busy.nodes.has(one) && busy.nodes.has(target)));
});

test("components that everyone has are joined to those that were seen to use them", () => {
  const mesh = chain(9);
  mesh.components[1].apps = mesh.apps.map((each) => each.id);
  const arrows = [...graph(mesh, new Set(["app:a3\ncomponent:s"])).arrows.keys()].filter((id) => id.endsWith("component:s"));
  assert.deepEqual(arrows, ["app:a3\ncomponent:s"]);
});

test("addresses keep any name", () => {
  for (const name of ["a/b", "ä ö", "100%", "a?b#c&d=e", "..", "<b>"]) {
    const { page, params } = router.read(router.links.topic("p", name));
    assert.deepEqual([page, params], ["topic", { component: "p", topic: name }]);
  }
  assert.equal(router.read("#/apps/%zz").page, null);
  assert.equal(router.read("#/nowhere").page, null);
  assert.equal(router.read("#/events?topic=a%2Fb").query.get("topic"), "a/b");
});

test("numbers are short, and say what they are", () => {
  const { ago, bytes, lasting, many, ms, percent, perSecond } = format;
  assert.deepEqual([ms(0.0004), ms(0.0123), ms(1.25), ms(125), ms(null)], ["0.40 ms", "12 ms", "1.3 s", "2 min 5 s", "–"]);
  assert.deepEqual([perSecond(0), perSecond(0.02), perSecond(3.14), perSecond(12345)], ["0/s", "1/min", "3.1/s", "12.3k/s"]);
  assert.deepEqual([bytes(1023), bytes(1536), bytes(-1), bytes(5 * 2 ** 30)], ["1023 B", "1.5 KiB", "–", "5.0 GiB"]);
  assert.deepEqual([lasting(90061), lasting(59.7), lasting(0)], ["1 d 1 h", "1 min", "0 s"]);
  assert.deepEqual([ago(100, 160_000), ago(100, 40_000), ago("nonsense")], ["1 min ago", "in 1 min", "–"]);
  assert.deepEqual([percent(0), percent(0.0001), percent(0.016), percent(1)], ["0 %", "<0.1 %", "1.6 %", "100 %"]);
  assert.deepEqual([many(1, "row"), many(1200, "row")], ["1 row", "1,200 rows"]);
});
