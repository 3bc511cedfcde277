// Actors on the unmodified Node SDK, which hosts them over HTTP and speaks to its gateway over HTTP or gRPC; and a client
// of them. Prints what it saw as one line of JSON.
const { AbstractActor, ActorId, ActorProxyBuilder, CommunicationProtocolEnum, DaprClient, DaprServer, Temporal } = require("@dapr/dapr");

const GRPC = process.env.PROTOCOL === "grpc";
const SPEAKING = { communicationProtocol: GRPC ? CommunicationProtocolEnum.GRPC : CommunicationProtocolEnum.HTTP };
const HOST = "127.0.0.1";
const { APP_PORT, APP_GATEWAY_PORT, CLIENT_GATEWAY_PORT, CLIENT_HTTP_PORT } = process.env;

const happened = []; // What the actors were told by timers, reminders and deactivations.
const waiting = [];

function note(...what) {
  happened.push(JSON.stringify(what));
  for (const look of [...waiting]) look();
}

const count = (...what) => happened.filter((each) => each === JSON.stringify(what)).length;

// Wait until these have happened, each so often.
function until(...wanted) {
  return new Promise((resolve, reject) => {
    const over = setTimeout(() => reject(new Error(`only ${happened.slice(0, 50)}`)), 60000);
    const look = () => {
      if (!wanted.every(([least, ...what]) => count(...what) >= least)) return;
      clearTimeout(over);
      waiting.splice(waiting.indexOf(look), 1);
      resolve();
    };
    waiting.push(look);
    look();
  });
}

class ShopActor extends AbstractActor {
  async onActivate() {
    note("activated", this.getActorId().getId());
  }

  async onDeactivate() {
    note("deactivated", this.getActorId().getId());
  }

  async echo(...data) {
    return data;
  }

  async nothing() {}

  async fail() {
    throw new Error("the shop is closed");
  }

  async add(more) {
    const [, count] = await this.getStateManager().tryGetState("count");
    await new Promise(setImmediate); // Another turn would come between.
    const added = Number(count ?? 0) + more;
    await this.getStateManager().setState("count", String(added));
    return added;
  }

  async keep() {
    const states = this.getStateManager();
    await states.setState("text", "plain");
    await states.setState("gone", "soon");
    await states.addOrUpdateState("list", GRPC ? "[1]" : [1], () => "never");
    await states.saveState();
    await states.removeState("gone");
    return [await states.getOrAddState("text", "other"), await states.containsState("gone"), await states.containsState("none")];
  }

  async kept() {
    const states = this.getStateManager();
    await states.clearCache(); // So that it is read.
    return { text: await states.tryGetState("text"), gone: await states.containsState("gone"), list: await states.getState("list") };
  }

  async start() {
    const second = Temporal.Duration.from({ seconds: 1 });
    await this.registerActorTimer("often", "onTimer", "200ms", "200ms", undefined, "often");
    await this.registerActorTimer("once", "onTimer", second, undefined, undefined, "once");
    await this.registerActorReminder("often", "0s", "200ms", undefined, "often");
    await this.registerActorReminder("brief", "0s", second, "1500ms", "brief");
  }

  async stop() {
    await this.unregisterActorTimer("often");
    await this.unregisterActorReminder("often");
    await this.registerActorTimer("later", "onTimer", "0s", "200ms", undefined, "later");
    await this.registerActorReminder("later", "0s", "200ms", undefined, "later");
  }

  async end() {
    await this.unregisterActorTimer("later");
    await this.unregisterActorReminder("later");
  }

  async onTimer(data) {
    note("timer", data);
  }

  async receiveReminder(data) {
    note("reminder", data);
  }
}

async function refusedText(call) {
  return call().then(
    (answer) => `answered ${JSON.stringify(answer)}`,
    (thrown) => String(thrown),
  );
}

// Until the client's gateway knows of a host.
async function hosted(call) {
  for (const end = Date.now() + 60000; ; await new Promise((resolve) => setTimeout(resolve, 50))) {
    try {
      return await call();
    } catch (error) {
      if (Date.now() > end) throw error;
    }
  }
}

async function main() {
  const server = new DaprServer({
    serverHost: HOST,
    serverPort: APP_PORT,
    communicationProtocol: CommunicationProtocolEnum.HTTP,
    clientOptions: { ...SPEAKING, daprHost: HOST, daprPort: APP_GATEWAY_PORT, actor: { actorIdleTimeout: "1s", actorScanInterval: "1s" } },
  });
  await server.actor.init();
  server.actor.registerActor(ShopActor);
  await server.start();

  const client = new DaprClient({ ...SPEAKING, daprHost: HOST, daprPort: CLIENT_GATEWAY_PORT });
  await client.start();
  const shops = new ActorProxyBuilder(ShopActor, client);
  const one = shops.build(new ActorId("one"));
  // A call over gRPC has no content type, and without one the SDK's host reads no arguments: those go over HTTP.
  const overHTTP = new ActorProxyBuilder(ShopActor, new DaprClient({ daprHost: HOST, daprPort: CLIENT_HTTP_PORT }));
  const [told, two] = [overHTTP.build(new ActorId("one")), overHTTP.build(new ActorId("two::ü ä"))];
  await hosted(() => one.nothing());
  const seen = {
    registered: await server.actor.getRegisteredActors(),
    echo: await told.echo({ a: [1, null, "ü"] }, "second"),
    failed: await refusedText(() => one.fail()),
    unknown: await refusedText(() => one.unheard()),
    added: await Promise.all(Array.from({ length: 8 }, () => told.add(1))),
    keep: await one.keep(),
    kept: await one.kept(),
    other: await two.add(5),
  };
  const data = (text) => (GRPC ? Buffer.from(text).toString("base64") : text);
  await one.start();
  await until(
    ...["timer", "reminder"].map((kind) => [3, kind, data("often")]),
    [1, "timer", data("once")],
    [1, "reminder", data("brief")],
  );
  await one.stop();
  const often = () => ["timer", "reminder"].map((kind) => count(kind, data("often")));
  const before = often();
  await until(...["timer", "reminder"].map((kind) => [3, kind, data("later")]));
  seen.after = often().map((each, n) => each - before[n]);
  seen.times = [count("timer", data("once")), count("reminder", data("brief"))];
  await one.end();
  await until([1, "deactivated", "one"], [1, "deactivated", "two::ü ä"]);
  seen.later = [await told.add(1), await two.add(1)];
  seen.activated = [count("activated", "one"), count("activated", "two::ü ä")];
  console.log(JSON.stringify(seen));
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
