// Jobs: when each is due, what came of the last runs, run it now, delete it.
import { html, useMemo, useState } from "../dom.js";
import { ofApp, post, remove } from "../api.js";
import { useMesh, useSights } from "../live.js";
import { links, setQuery } from "../router.js";
import { AppField, Problems, chosenApps, useOfApps } from "../each.js";
import { failedSight } from "../traces.js";
import { Ago, Badge, Button, Dialog, Empty, Facts, Json, Loading, Page, Section, Table, Thing, confirm, count, ms, time, toast } from "../ui.js";

const COMMAND = `curl -d '{"schedule": "@every 1m", "data": {"month": 7}}' http://localhost:3500/v1.0/jobs/report`;
const WATCHED = { block: ["jobs"] };

export default function Jobs({ query }) {
  const mesh = useMesh();
  const [app, setApp] = useState(query.get("app") ?? "");
  const [open, setOpen] = useState(null);
  const apps = chosenApps(mesh, app);
  const of = useOfApps(apps, ["mesh", "jobs"], { rowsOf: (told) => told.jobs, afterOf: (told) => told.after, every: 5 });
  const seen = useSights(WATCHED);
  const runs = useMemo(() => Map.groupBy(seen.sights.filter((each) => each.data.seen === "arrived"), (each) => `${each.data.app}\n${jobOf(each)}`), [seen.sights]);
  const rows = useMemo(() => of.rows.map((row) => ({ ...row, key: `${row.app}\n${row.name}`, runs: runs.get(`${row.app}\n${row.name}`) ?? [] })), [of.rows, runs]);
  const choose = (id) => {
    setApp(id);
    setQuery({ app: id });
  };
  const run = async (job) => {
    try {
      await post(ofApp(job.app, "mesh", "jobs", job.name, "run"));
      toast(`${job.app} took job ${job.name}`);
    } catch (error) {
      toast(`Job ${job.name} did not run: ${error.message}`, "bad");
    }
  };
  const drop = async (job) => {
    const sure = await confirm({ title: `Delete job ${job.name}?`, text: `${job.app} is not told of it any more. To have it again, it has to be scheduled anew.`, action: "Delete it", danger: true });
    if (!sure) return;
    try {
      await remove(ofApp(job.app, "jobs", job.name));
      toast(`Job ${job.name} of ${job.app} is deleted`);
      setOpen(null);
      of.reload();
    } catch (error) {
      toast(`Job ${job.name} is still there: ${error.message}`, "bad");
    }
  };
  const failed = seen.sights.filter((each) => each.data.seen === "arrived" && failedSight(each.data));
  return html`<${Page} title="Jobs" lead="What applications asked to be told of at a time.">
    <div class="fields"><${AppField} mesh=${mesh} value=${app} onChange=${choose} /></div>
    <${Problems} errors=${of.errors} retry=${of.reload} what="Jobs" />
    <${Section} title="Jobs" flush>
      ${!mesh || (of.loading && !rows.length)
        ? html`<${Loading} what="Asking for jobs" />`
        : html`<${Table} caption="Jobs" search="Find a job" noun="job" rows=${rows} keyOf=${(row) => row.key} sortBy="next" onRow=${setOpen} columns=${columnsOf(run, drop, setOpen)}
            empty=${html`<${Nothing} asked=${apps.length} failed=${of.errors.length} />`} />`}
      ${of.more && html`<div class="part-pad"><${Button} disabled=${of.loading} onClick=${of.loadMore}>More jobs<//></div>`}
    <//>
    <${Section} title="Failed runs" note="since this page was opened" flush>
      <${Table} caption="Failed runs" noun="run" rows=${failed} keyOf=${(row) => row.id} columns=${FAILED}
        empty=${html`<${Empty} icon="ok" title=${seen.refused.length || seen.error ? "None was seen to fail" : "None has failed while this page was open"}><${Unseen} seen=${seen} /><//>`} />
    <//>
    ${open && html`<${Job} job=${rows.find((row) => row.key === open.key) ?? open} onClose=${() => setOpen(null)} run=${run} drop=${drop} />`}
  <//>`;
}

function Nothing({ asked, failed }) {
  if (!asked) return html`<${Empty} icon="jobs" title="Choose an application">There are too many to ask all of them.<//>`;
  if (failed) return html`<${Empty} icon="jobs" title=${failed === asked ? "No application tells of its jobs" : "Those that tell have none"}>Why stands above.<//>`;
  return html`<${Empty} icon="jobs" title="No jobs are scheduled" command=${COMMAND}>An application schedules one at its gateway; so does this command.<//>`;
}

function Unseen({ seen }) {
  if (seen.error) return seen.error.message;
  if (seen.refused.length) return `Not all tell: ${seen.refused[0].app}: ${seen.refused[0].reason}`;
  return "Runs appear here as they happen, with what the application answered.";
}

/** The name of a job that a sight is of. */
const jobOf = ({ data }) => data.details.job;

const FAILED = [
  { key: "time", label: "When", value: (row) => row.time, render: (row) => html`<time datetime=${row.time}>${time(row.time)}</time>` },
  { key: "job", label: "Job", value: jobOf },
  { key: "app", label: "Application", value: (row) => row.data.app },
  { key: "outcome", label: "Outcome", value: (row) => row.data.outcome, render: (row) => html`<${Badge} kind="bad">${row.data.outcome}<//>` },
  { key: "why", label: "Why", value: (row) => row.data.details.reason ?? (row.data.details.status && `HTTP ${row.data.details.status}`), wide: true },
  { key: "took", label: "Took", end: true, value: (row) => row.data.seconds, render: (row) => ms(row.data.seconds) },
];

function columnsOf(run, drop, open) {
  return [
    { key: "name", label: "Name", value: (row) => row.name, render: (row) => html`<span class="thing"><span class="dot job" aria-hidden="true"></span><button type="button" class="link-button" onClick=${() => open(row)}>${row.name}</button></span>` },
    { key: "app", label: "Application", value: (row) => row.app, render: (row) => html`<${Thing} kind="app" name=${row.app} href=${links.app(row.app)} />` },
    { key: "schedule", label: "Schedule", value: (row) => row.schedule ?? `once, ${row.dueTime}`, render: (row) => html`<code>${row.schedule ?? `once, ${row.dueTime}`}</code>` },
    { key: "next", label: "Next run", value: (row) => Date.parse(row.nextDue), render: (row) => html`<${Ago} at=${row.nextDue} />` },
    { key: "left", label: "Runs left", end: true, value: (row) => row.left, render: (row) => (row.left === null ? "no end" : count(row.left)) },
    { key: "last", label: "Last run seen", value: (row) => row.runs[0]?.time, render: (row) => html`<${Last} runs=${row.runs} />` },
    {
      key: "do", label: "Actions", hideLabel: true, end: true,
      render: (row) => html`<span class="row-actions"><${Button} quiet icon="play" label=${`Run ${row.name} now`} onClick=${() => run(row)} /><${Button} quiet icon="trash" label=${`Delete ${row.name}`} onClick=${() => drop(row)} /></span>`,
    },
  ];
}

function Last({ runs }) {
  if (!runs.length) return "–";
  const bad = failedSight(runs[0].data);
  return html`<${Badge} kind=${bad ? "bad" : "ok"}>${bad ? runs[0].data.outcome : "ok"}<//> <span class="dim"><${Ago} at=${runs[0].time} /></span>`;
}

function Job({ job, onClose, run, drop }) {
  const { constant, drop: never } = job.failurePolicy ?? {};
  const policy = never ? "not tried again" : constant ? `tried again after ${constant.interval}, ${constant.maxRetries === undefined ? "without end" : `${constant.maxRetries} times at most`}` : "";
  return html`<${Dialog} title=${`Job ${job.name}`} onClose=${onClose} actions=${html`<${Button} icon="trash" onClick=${() => drop(job)}>Delete<//><${Button} kind="main" icon="play" onClick=${() => run(job)}>Run now<//>`}>
    <${Facts} rows=${[
      ["Application", html`<a href=${links.app(job.app)}>${job.app}</a>`],
      ["Schedule", job.schedule && html`<code>${job.schedule}</code>`],
      ["Due first", job.dueTime],
      ["Next run", html`<${Ago} at=${job.nextDue} />`],
      ["Runs", job.repeats !== undefined && `${count(job.repeats)} in all, ${count(job.left)} left`],
      ["Ends", job.ttl],
      ["A run that fails", policy],
    ]} />
    ${job.data !== undefined && html`<h3>Data</h3><${Json} value=${job.data?.value ?? job.data} label="Data" />`}
  <//>`;
}
