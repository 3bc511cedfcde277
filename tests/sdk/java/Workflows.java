// Workflows on the unmodified Java SDK: a worker and a client, which prints what it saw as one line of JSON; with an
// argument the worker of another application.

import com.fasterxml.jackson.databind.ObjectMapper;
import io.dapr.config.Properties;
import io.dapr.durabletask.Task;
import io.dapr.durabletask.TaskFailedException;
import io.dapr.workflows.Workflow;
import io.dapr.workflows.WorkflowActivity;
import io.dapr.workflows.WorkflowContext;
import io.dapr.workflows.WorkflowStub;
import io.dapr.workflows.WorkflowTaskOptions;
import io.dapr.workflows.WorkflowTaskRetryPolicy;
import io.dapr.workflows.client.DaprWorkflowClient;
import io.dapr.workflows.client.WorkflowState;
import io.dapr.workflows.runtime.WorkflowRuntimeBuilder;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;

public final class Workflows {
  static final int WIDE = 1000;
  static final Duration PATIENCE = Duration.ofSeconds(120);
  static final ObjectMapper JSON = new ObjectMapper();
  static final AtomicInteger TRIES = new AtomicInteger();

  /** Registers what is written as a lambda: the SDK names classes. */
  static final class Hub {
    private final WorkflowRuntimeBuilder builder;

    Hub(Properties where) {
      builder = new WorkflowRuntimeBuilder(where);
    }

    Hub activity(String name, WorkflowActivity activity) {
      builder.registerActivity(name, activity);
      return this;
    }

    Hub workflow(String name, WorkflowStub stub) {
      Workflow workflow = () -> stub;
      builder.registerWorkflow(name, workflow, null, null);
      return this;
    }

    void start() {
      builder.build().start(false);
    }
  }

  static Properties at(String variable) {
    return new Properties(Map.of("dapr.grpc.port", System.getenv(variable), "dapr.sidecar.ip", "127.0.0.1"));
  }

  static void sequence(WorkflowContext ctx) {
    int number = ctx.getInput(Integer.class);
    for (int step = 0; step < 3; step++) {
      number = ctx.callActivity("double", number, Integer.class).await();
    }
    ctx.callActivity("nothing").await();
    ctx.complete(number);
  }

  static void fan(WorkflowContext ctx) {
    List<Task<Integer>> tasks = new ArrayList<>();
    for (int number = 0; number < ctx.getInput(Integer.class); number++) {
      tasks.add(ctx.callActivity("double", number, Integer.class));
    }
    ctx.complete(ctx.allOf(tasks).await().stream().mapToInt(Integer::intValue).sum());
  }

  static void race(WorkflowContext ctx) {
    Task<String> event = ctx.waitForExternalEvent("go", String.class);
    Task<Void> timer = ctx.createTimer(Duration.ofMillis(ctx.getInput(Integer.class)));
    ctx.complete(ctx.anyOf(event, timer).await() == event ? event.await() : "late");
  }

  static void timers(WorkflowContext ctx) {
    java.time.Instant begun = ctx.getCurrentInstant();
    ctx.createTimer(Duration.ofDays(3650));
    ctx.createTimer(Duration.ofMillis(1)).await();
    ctx.createTimer(Duration.ofMillis(10)).await();
    ctx.complete(Duration.between(begun, ctx.getCurrentInstant()).toMillis() >= 11);
  }

  static void parent(WorkflowContext ctx) {
    int named = ctx.callChildWorkflow("sequence", 1, ctx.getInstanceId() + "-named", Integer.class).await();
    String failed = "";
    try {
      ctx.callChildWorkflow("failing").await();
    } catch (TaskFailedException error) {
      failed = error.getMessage();
    }
    WorkflowTaskOptions there = new WorkflowTaskOptions("billing");
    String shipped = ctx.callChildWorkflow("ship", "book", "shipped", there, String.class).await();
    ctx.complete(List.of(named, failed, shipped, ctx.callActivity("charge", 7, there, Integer.class).await()));
  }

  static void retried(WorkflowContext ctx) {
    WorkflowTaskRetryPolicy policy =
        WorkflowTaskRetryPolicy.newBuilder()
            .setMaxNumberOfAttempts(3)
            .setFirstRetryInterval(Duration.ofMillis(1))
            .build();
    ctx.complete(ctx.callActivity("closed", 2, new WorkflowTaskOptions(policy), Integer.class).await());
  }

  static void again(WorkflowContext ctx) {
    List<String> kept = new ArrayList<>(Arrays.asList(ctx.getInput(String[].class)));
    kept.add(ctx.waitForExternalEvent("item", String.class).await());
    if (kept.size() == 3) {
      ctx.complete(kept);
    } else {
      ctx.continueAsNew(kept, true);
    }
  }

  static void waits(WorkflowContext ctx) {
    int one = ctx.waitForExternalEvent("one", Integer.class).await();
    ctx.complete(List.of(one, ctx.waitForExternalEvent("two", Integer.class).await()));
  }

  static void patched(WorkflowContext ctx) {
    boolean first = ctx.isPatched("change");
    ctx.callActivity("nothing").await();
    ctx.complete(first && ctx.isPatched("change"));
  }

  static List<Object> ended(DaprWorkflowClient client, String id) throws Exception {
    WorkflowState state = client.waitForWorkflowCompletion(id, PATIENCE, true);
    String output = state.getSerializedOutput();
    return Arrays.asList(
        state.getRuntimeStatus().name(),
        output == null || output.isEmpty() ? null : JSON.readValue(output, Object.class));
  }

  public static void main(String[] args) throws Exception {
    if (args.length > 0) { // A process has one runtime.
      new Hub(at("BILLING_GRPC_PORT"))
          .activity("charge", ctx -> ctx.getInput(Integer.class))
          .workflow("ship", ctx -> ctx.complete(ctx.getInstanceId() + " " + ctx.getInput(String.class)))
          .start();
      return;
    }
    new Hub(at("SHOP_GRPC_PORT"))
        .activity("double", ctx -> 2 * ctx.getInput(Integer.class))
        .activity("nothing", ctx -> null)
        .activity(
            "closed",
            ctx -> {
              if (TRIES.incrementAndGet() <= ctx.getInput(Integer.class)) {
                throw new IllegalStateException("the shop is closed");
              }
              return TRIES.get();
            })
        .workflow("sequence", Workflows::sequence)
        .workflow("fan", Workflows::fan)
        .workflow("race", Workflows::race)
        .workflow("timers", Workflows::timers)
        .workflow(
            "failing",
            ctx -> {
              throw new IllegalStateException("child is lost");
            })
        .workflow("parent", Workflows::parent)
        .workflow("retried", Workflows::retried)
        .workflow("again", Workflows::again)
        .workflow("waits", Workflows::waits)
        .workflow("patched", Workflows::patched)
        .start();
    Map<String, Object> seen = new LinkedHashMap<>();
    try (DaprWorkflowClient client = new DaprWorkflowClient(at("SHOP_GRPC_PORT"))) {
      client.scheduleNewWorkflow("sequence", 1, "sequence");
      client.scheduleNewWorkflow("fan", WIDE, "fan");
      for (String name : List.of("timers", "parent", "retried", "patched")) {
        client.scheduleNewWorkflow(name, null, name);
      }
      client.scheduleNewWorkflow("again", List.of(), "again");
      client.scheduleNewWorkflow("race", 5, "raceTimer");
      client.scheduleNewWorkflow("race", 3_600_000, "raceEvent");
      client.raiseEvent("raceEvent", "go", "ü");
      for (String item : List.of("a", "b", "c")) {
        client.raiseEvent("again", "item", item);
      }
      for (String id :
          List.of("sequence", "fan", "raceTimer", "raceEvent", "timers", "parent", "retried", "again", "patched")) {
        seen.put(id, ended(client, id));
      }

      client.scheduleNewWorkflow("waits", null, "held");
      client.waitForWorkflowStart("held", PATIENCE, false);
      client.suspendWorkflow("held", "a while");
      seen.put("paused", client.getWorkflowState("held", false).getRuntimeStatus().name());
      client.raiseEvent("held", "one", 1);
      client.raiseEvent("held", "two", 2);
      client.resumeWorkflow("held", "go on");
      seen.put("held", ended(client, "held"));

      client.scheduleNewWorkflow("waits", null, "ended");
      client.terminateWorkflow("ended", "why");
      seen.put("terminated", ended(client, "ended").get(0));
      boolean purged = client.purgeWorkflow("ended");
      WorkflowState gone = client.getWorkflowState("ended", false);
      seen.put("purged", Arrays.asList(purged, gone == null || gone.getName().isEmpty()));
    }
    System.out.println(JSON.writeValueAsString(seen));
    System.exit(0);
  }
}
