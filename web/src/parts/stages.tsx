import { count, duration, figure, percent } from "../format.ts";
import { type Job, StagePhase, type StageStatus } from "../gen/crescendo/v1/job_pb.ts";
import { Badge, Bar, PHASES } from "./basics.tsx";

/** The stages as a line, each with what it waits for. */
export function Stages({ job }: { job: Job }) {
  return (
    <ol class="stages" aria-label="Stages">
      {job.stages.map((stage) => (
        <li key={stage.name} class={PHASES[stage.phase].tone}>
          <Stage stage={stage} />
        </li>
      ))}
    </ol>
  );
}

function Stage({ stage }: { stage: StageStatus }) {
  const total = Number(stage.stepsTotal);
  const rejected = Object.entries(stage.pairsRejected).sort(([, left], [, right]) => Number(right - left));
  const under = stage.underWay;
  const trains = stage.phase === StagePhase.TRAINING;
  const waits = [
    stage.waitingFor,
    ...stage.waitingCurators.map(({ nodeId, reason }) => `${nodeId}: ${reason}`),
    ...stage.cooldowns.map(({ nodeId, reason }) => `${nodeId} cannot open the source: ${reason}`),
    stage.lastFailure ? `unit ${stage.lastFailure.unit} on ${stage.lastFailure.nodeId}: ${stage.lastFailure.reason}` : "",
  ].filter(Boolean);
  return (
    <>
      <div class="head">
        <h2>{stage.name}</h2>
        <Badge {...PHASES[stage.phase]} />
      </div>
      <div class="measure">
        <span>Steps</span>
        <Bar part={total ? Number(stage.step) / total : 0} label={`Steps of ${stage.name}`} />
        <span class="num">
          {count(stage.step)} / {count(stage.stepsTotal)}
        </span>
      </div>
      {stage.pairsTarget > 0n && (
        <div class="measure">
          <span>Pairs</span>
          <Bar part={Number(stage.pairsCommitted) / Number(stage.pairsTarget)} label={`Pairs of ${stage.name}`} />
          <span class="num">
            {count(stage.pairsCommitted)} / {count(stage.pairsTarget)}
          </span>
        </div>
      )}
      <p class="line">
        {[
          trains && stage.etaSeconds > 0 ? `${duration(stage.etaSeconds)} left` : "",
          trains ? `${figure(stage.samplesPerSec)} samples/s` : "",
          trains && stage.dataWaitFraction > 0.01 ? `${percent(stage.dataWaitFraction)} waiting for data` : "",
          stage.pairsPerMinute > 0 ? `${figure(stage.pairsPerMinute)} pairs/min` : "",
          under ? `${count(under.drawn)} of ${count(under.candidates)} candidates drawn, ${count(under.accepted)} accepted` : "",
          stage.restarts > 0 ? `${stage.restarts} restarts` : "",
          stage.skippedSteps > 0n ? `${count(stage.skippedSteps)} steps skipped` : "",
          stage.precision ? stage.precision : "",
        ]
          .filter(Boolean)
          .join(" · ")}
      </p>
      {waits.map((wait) => (
        <p key={wait} class="waits">
          {wait}
        </p>
      ))}
      {rejected.length > 0 && (
        <p class="line faint" title={rejected.map(([reason, number]) => `${reason}: ${number}`).join("\n")}>
          rejected: {rejected.slice(0, 3).map(([reason, number]) => `${reason} ${count(number)}`).join(", ")}
          {rejected.length > 3 ? ", …" : ""}
        </p>
      )}
    </>
  );
}
