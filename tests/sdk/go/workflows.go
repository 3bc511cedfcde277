package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync/atomic"
	"time"

	"github.com/dapr/durabletask-go/backend"
	"github.com/dapr/durabletask-go/workflow"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const wide = 1000

var tries atomic.Int32

func double(ctx workflow.ActivityContext) (any, error) {
	var number int
	check(ctx.GetInput(&number))
	return 2 * number, nil
}

func nothing(workflow.ActivityContext) (any, error) { return nil, nil }

func closed(ctx workflow.ActivityContext) (any, error) {
	var times int32
	check(ctx.GetInput(&times))
	if tries.Add(1) <= times {
		return nil, errors.New("the shop is closed")
	}
	return tries.Load(), nil
}

func charge(ctx workflow.ActivityContext) (any, error) {
	var amount int
	check(ctx.GetInput(&amount))
	return amount, nil
}

func ship(ctx *workflow.WorkflowContext) (any, error) {
	var what string
	check(ctx.GetInput(&what))
	return ctx.ID() + " " + what, nil
}

func sequence(ctx *workflow.WorkflowContext) (any, error) {
	var number int
	check(ctx.GetInput(&number))
	for range 3 {
		if err := ctx.CallActivity("double", workflow.WithActivityInput(number)).Await(&number); err != nil {
			return nil, err
		}
		ctx.SetCustomStatus(fmt.Sprintf("at %d", number))
	}
	var none any
	err := ctx.CallActivity("nothing").Await(&none)
	return []any{number, none}, err
}

func fan(ctx *workflow.WorkflowContext) (any, error) {
	var count, sum int
	check(ctx.GetInput(&count))
	tasks := make([]workflow.Task, count)
	for number := range count {
		tasks[number] = ctx.CallActivity("double", workflow.WithActivityInput(number))
	}
	for _, task := range tasks {
		var found int
		if err := task.Await(&found); err != nil {
			return nil, err
		}
		sum += found
	}
	return sum, nil
}

func race(ctx *workflow.WorkflowContext) (any, error) {
	var millis int
	check(ctx.GetInput(&millis))
	var got string
	if err := ctx.WaitForExternalEvent("go", time.Duration(millis)*time.Millisecond).Await(&got); err != nil {
		return "late", nil
	}
	return got, nil
}

func timers(ctx *workflow.WorkflowContext) (any, error) {
	begun := ctx.CurrentTimeUTC()
	ctx.CreateTimer(10 * 365 * 24 * time.Hour)
	if err := ctx.CreateTimer(time.Millisecond).Await(nil); err != nil {
		return nil, err
	}
	err := ctx.CreateTimer(10 * time.Millisecond).Await(nil)
	return ctx.CurrentTimeUTC().Sub(begun) >= 11*time.Millisecond, err
}

// known tells what a caller has handed on: by which scope, whose history it is, and how many events it has.
func known(history *workflow.PropagatedHistory) string {
	if history == nil {
		return "nothing"
	}
	told := history.Scope().String()
	for _, each := range history.GetWorkflows() {
		told += " " + each.AppID + "/" + each.Name
	}
	return fmt.Sprintf("%s %d", told, len(history.Events()))
}

func look(ctx workflow.ActivityContext) (any, error) { return known(ctx.GetPropagatedHistory()), nil }

func heir(ctx *workflow.WorkflowContext) (any, error) {
	var below string
	lineage := workflow.WithHistoryPropagation(workflow.PropagateLineage())
	err := ctx.CallActivity("look", lineage).Await(&below)
	return []string{known(ctx.GetPropagatedHistory()), below}, err
}

func ancestor(ctx *workflow.WorkflowContext) (any, error) {
	var plain, own string
	var child []string
	if err := ctx.CallActivity("look", workflow.WithActivityAppID("billing")).Await(&plain); err != nil {
		return nil, err
	}
	alone := workflow.WithHistoryPropagation(workflow.PropagateOwnHistory())
	if err := ctx.CallActivity("look", workflow.WithActivityAppID("billing"), alone).Await(&own); err != nil {
		return nil, err
	}
	lineage := workflow.WithHistoryPropagation(workflow.PropagateLineage())
	err := ctx.CallChildWorkflow("heir", workflow.WithChildWorkflowAppID("billing"), lineage).Await(&child)
	return append([]string{plain, own}, child...), err
}

func failing(ctx *workflow.WorkflowContext) (any, error) {
	return nil, errors.New("child is lost")
}

func parent(ctx *workflow.WorkflowContext) (any, error) {
	var named []any
	here := ctx.CallChildWorkflow("sequence", workflow.WithChildWorkflowInput(1), workflow.WithChildWorkflowInstanceID(ctx.ID()+"-named"))
	if err := here.Await(&named); err != nil {
		return nil, err
	}
	if err := ctx.CallChildWorkflow("failing").Await(nil); err != nil {
		ctx.SetCustomStatus(err.Error())
	}
	var shipped string
	there := ctx.CallChildWorkflow("ship", workflow.WithChildWorkflowInput("book"), workflow.WithChildWorkflowAppID("billing"), workflow.WithChildWorkflowInstanceID("shipped"))
	if err := there.Await(&shipped); err != nil {
		return nil, err
	}
	var charged int
	err := ctx.CallActivity("charge", workflow.WithActivityInput(7), workflow.WithActivityAppID("billing")).Await(&charged)
	return []any{named[0], shipped, charged}, err
}

func retried(ctx *workflow.WorkflowContext) (any, error) {
	policy := &workflow.RetryPolicy{MaxAttempts: 3, InitialRetryInterval: time.Millisecond, BackoffCoefficient: 2}
	var good int
	if err := ctx.CallActivity("closed", workflow.WithActivityInput(2), workflow.WithActivityRetryPolicy(policy)).Await(&good); err != nil {
		return nil, err
	}
	err := ctx.CallActivity("closed", workflow.WithActivityInput(99), workflow.WithActivityRetryPolicy(policy)).Await(nil)
	return []any{good, err != nil}, nil
}

func again(ctx *workflow.WorkflowContext) (any, error) {
	var kept []string
	check(ctx.GetInput(&kept))
	var got string
	if err := ctx.WaitForExternalEvent("item", -1).Await(&got); err != nil {
		return nil, err
	}
	if kept = append(kept, got); len(kept) == 3 {
		return kept, nil
	}
	ctx.ContinueAsNew(kept, workflow.WithKeepUnprocessedEvents())
	return nil, nil
}

func waits(ctx *workflow.WorkflowContext) (any, error) {
	var one, two int
	if err := ctx.WaitForExternalEvent("one", -1).Await(&one); err != nil {
		return nil, err
	}
	err := ctx.WaitForExternalEvent("two", -1).Await(&two)
	return []int{one, two}, err
}

func waitsForChild(ctx *workflow.WorkflowContext) (any, error) {
	return nil, ctx.CallChildWorkflow("waits", workflow.WithChildWorkflowInstanceID(ctx.ID()+"-child")).Await(nil)
}

func version(name string) workflow.Workflow {
	return func(ctx *workflow.WorkflowContext) (any, error) {
		return name, ctx.CallActivity("nothing").Await(nil)
	}
}

func patched(ctx *workflow.WorkflowContext) (any, error) {
	first := ctx.IsPatched("change")
	err := ctx.CallActivity("nothing").Await(nil)
	return first && ctx.IsPatched("change"), err
}

// hub makes a client of a gateway, and has it work on what is registered.
func hub(ctx context.Context, variable string, activities map[string]workflow.Activity, workflows map[string]workflow.Workflow) (*workflow.Client, *workflow.Registry) {
	connection := must(grpc.NewClient("127.0.0.1:"+os.Getenv(variable), grpc.WithTransportCredentials(insecure.NewCredentials())))
	registry := workflow.NewRegistry()
	for name, each := range activities {
		check(registry.AddActivityN(name, each))
	}
	for name, each := range workflows {
		check(registry.AddWorkflowN(name, each))
	}
	return workflow.NewClientWithLogger(connection, backend.DefaultLogger()), registry
}

// workflows runs everything that the SDK has.
func workflows() {
	log.SetOutput(io.Discard)
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	client, registry := hub(ctx, "SHOP_GRPC_PORT",
		map[string]workflow.Activity{"double": double, "nothing": nothing, "closed": closed},
		map[string]workflow.Workflow{
			"sequence": sequence, "fan": fan, "race": race, "timers": timers, "failing": failing, "parent": parent,
			"retried": retried, "again": again, "ancestor": ancestor, "waits": waits, "waitsForChild": waitsForChild, "patched": patched,
		})
	check(registry.AddVersionedWorkflowN("versions", "one", false, version("one")))
	check(registry.AddVersionedWorkflowN("versions", "two", true, version("two")))
	check(client.StartWorker(ctx, registry))
	other, theirs := hub(ctx, "BILLING_GRPC_PORT", map[string]workflow.Activity{"charge": charge, "look": look}, map[string]workflow.Workflow{"ship": ship, "heir": heir})
	check(other.StartWorker(ctx, theirs))

	start := func(name, id string, input any) error {
		_, err := client.ScheduleWorkflow(ctx, name, workflow.WithInstanceID(id), workflow.WithInput(input))
		return err
	}
	state := func(id string) (*workflow.WorkflowMetadata, string) {
		found, err := client.FetchWorkflowMetadata(ctx, id, workflow.WithFetchPayloads(true))
		if err != nil {
			return nil, code(err)
		}
		return found, found.String()
	}
	ended := func(id string) []string {
		found := must(client.WaitForWorkflowCompletion(ctx, id, workflow.WithFetchPayloads(true)))
		return []string{found.String(), found.Output.GetValue()}
	}
	until := func(id, status string) {
		for {
			if _, found := state(id); found == status {
				return
			}
			check(ctx.Err())
			time.Sleep(10 * time.Millisecond)
		}
	}

	for id, input := range map[string]any{"sequence": 1, "fan": wide, "timers": nil, "parent": nil, "retried": nil, "again": []string{}, "ancestor": nil, "patched": nil, "versions": nil} {
		check(start(id, id, input))
	}
	check(start("race", "raceTimer", 5))
	check(start("race", "raceEvent", 3_600_000))
	check(client.RaiseEvent(ctx, "raceEvent", "go", workflow.WithEventPayload("ü")))
	for _, item := range []string{"a", "b", "c"} {
		check(client.RaiseEvent(ctx, "again", "item", workflow.WithEventPayload(item)))
	}
	seen := map[string]any{}
	for _, id := range []string{"sequence", "fan", "raceTimer", "raceEvent", "timers", "parent", "retried", "again", "ancestor", "patched", "versions"} {
		seen[id] = ended(id)
	}
	told, _ := state("sequence")
	seen["customStatus"] = told.CustomStatus.GetValue()
	told, _ = state("parent")
	seen["failed"] = told.CustomStatus.GetValue()

	check(start("waits", "held", nil))
	must(client.WaitForWorkflowStart(ctx, "held"))
	check(client.SuspendWorkflow(ctx, "held", "a while"))
	_, seen["paused"] = state("held")
	check(client.RaiseEvent(ctx, "held", "one", workflow.WithEventPayload(1)))
	check(client.RaiseEvent(ctx, "held", "two", workflow.WithEventPayload(2)))
	check(client.ResumeWorkflow(ctx, "held", "go on"))
	seen["held"] = ended("held")

	check(start("waitsForChild", "tree", nil))
	until("tree-child", "RUNNING")
	seen["taken"] = code(start("waits", "tree", nil))
	check(client.TerminateWorkflow(ctx, "tree", workflow.WithRecursiveTerminate(true)))
	seen["terminated"] = []string{ended("tree")[0], ended("tree-child")[0]}
	check(client.PurgeWorkflowState(ctx, "tree", workflow.WithRecursivePurge(true)))
	_, gone := state("tree")
	_, childGone := state("tree-child")
	seen["purged"] = []string{gone, childGone}

	check(start("sequence", "first", 10))
	ended("first")
	history := must(client.GetInstanceHistory(ctx, "first")).Events
	seen["history"] = len(history)
	var doubles []int32
	for _, event := range history {
		if event.GetTaskScheduled().GetName() == "double" {
			doubles = append(doubles, event.EventId)
		}
	}
	rerun := must(client.RerunWorkflowFromEvent(ctx, "first", uint32(doubles[1])))
	seen["rerun"] = ended(rerun)
	listed := must(client.ListInstanceIDs(ctx)).InstanceIds
	seen["listed"] = len(listed) > 10
	fmt.Println(string(must(json.Marshal(seen))))
}
