import { count, duration, figure, percent } from "../format.ts";
import type { ListQueuesResponse, Queue, QueueSlots, TenantShare } from "../gen/crescendo/v1/queue_pb.ts";
import { Ago, Bar, Problem } from "../parts/basics.tsx";
import { useView } from "../watch/watch.ts";
import type { Shown } from "../watch/hub.ts";

const queues = (before: ListQueuesResponse | undefined, shown: Shown) => (shown.case === "queues" ? shown.value : before);

export function QueuesPage() {
  const { value, failed } = useView("queues", () => ({ case: "queues", value: { $typeName: "crescendo.v1.QueuesView" } }), queues);
  return (
    <section class="page">
      <div class="head">
        <h1>Queues</h1>
      </div>
      {failed && <Problem>{failed.message}</Problem>}
      {value && (
        <>
          {value.queues.length === 0 ? <p class="empty">There are no queues, and no job that waits or runs.</p> : <QueueTable queues={value.queues} />}
          <section class="block">
            <h2>Tenants</h2>
            <p class="faint">
              {value.fairShare
                ? `Fair share: among jobs of one priority those of the tenant go first that has used least for its share. What was used ${duration(Number(value.halfLifeSeconds))} ago counts half.`
                : "No fair share is set: jobs go by priority, then by when they were submitted."}
            </p>
            {value.tenants.length > 0 && <TenantTable tenants={value.tenants} />}
          </section>
        </>
      )}
    </section>
  );
}

function QueueTable({ queues }: { queues: Queue[] }) {
  return (
    <div class="scroll" role="region" aria-label="Queues" tabIndex={0}>
      <table>
        <thead>
          <tr>
            <th scope="col">Queue</th>
            <th scope="col">Slots in use</th>
            <th scope="col" class="num">
              Running
            </th>
            <th scope="col" class="num">
              Waiting
            </th>
            <th scope="col" class="num">
              Slots wanted
            </th>
            <th scope="col">Oldest waits since</th>
            <th scope="col">Order</th>
            <th scope="col">Open to</th>
          </tr>
        </thead>
        <tbody>
          {queues.map((queue) => (
            <tr key={queue.name}>
              <th scope="row">{queue.name || <span class="faint">in no queue</span>}</th>
              <td>
                {queue.slots.map((slots) => (
                  <Slots key={slots.device} slots={slots} queue={queue.name} />
                ))}
              </td>
              <td class="num">{count(queue.runningJobs)}</td>
              <td class="num">{count(queue.waitingJobs)}</td>
              <td class="num">{count(queue.pendingSlots)}</td>
              <td>
                <Ago at={queue.oldestWaitingSince} />
              </td>
              <td>
                {queue.order}
                {queue.packing && <span class="faint block">{queue.packing}</span>}
              </td>
              <td>{queue.openToAll ? "all" : queue.tenants.join(", ") || "–"}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Slots({ slots, queue }: { slots: QueueSlots; queue: string }) {
  const most = slots.max ?? Math.max(slots.guaranteed, slots.used);
  return (
    <div class="progress">
      <Bar part={most ? slots.used / most : 0} label={`${slots.device} slots of ${queue || "no queue"}`} />
      <span class="faint">
        {slots.used} {slots.device}
        {slots.guaranteed > 0 && `, ${slots.guaranteed} guaranteed`}
        {slots.max !== undefined && `, ${slots.max} at most`}
        {slots.borrowed > 0 && `, ${slots.borrowed} borrowed`}
      </span>
    </div>
  );
}

function TenantTable({ tenants }: { tenants: TenantShare[] }) {
  return (
    <div class="scroll" role="region" aria-label="Tenants" tabIndex={0}>
      <table>
        <thead>
          <tr>
            <th scope="col">Tenant</th>
            <th scope="col" class="num">
              Share
            </th>
            <th scope="col" class="num">
              Slots now
            </th>
            <th scope="col" class="num">
              Slot-hours that count
            </th>
            <th scope="col" class="num">
              Used
            </th>
            <th scope="col" class="num">
              Fair
            </th>
          </tr>
        </thead>
        <tbody>
          {tenants.map((tenant) => (
            <tr key={tenant.tenant}>
              <th scope="row">{tenant.tenant}</th>
              <td class="num">{tenant.share}</td>
              <td class="num">{count(tenant.usedSlots)}</td>
              <td class="num">{figure(tenant.usedSlotSeconds / 3600)}</td>
              <td class="num">{percent(tenant.usedPart)}</td>
              <td class="num">{percent(tenant.fairPart)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
