import { useState } from "preact/hooks";
import { count, duration, figure } from "../format.ts";
import { type Node, NodeKind, NodeReach } from "../gen/crescendo/v1/node_pb.ts";
import { Badge, Bar, Problem, said } from "../parts/basics.tsx";
import { href } from "../route.ts";
import { useSession } from "../session.ts";
import { nodeList } from "../shown.ts";
import { useView } from "../watch/watch.ts";

export function ClusterPage() {
  const { value: nodes, failed } = useView("nodes", () => ({ case: "nodes", value: { $typeName: "crescendo.v1.NodesView" } }), nodeList);
  const { who } = useSession();
  const [refused, setRefused] = useState("");
  const maySteer = who.role === "admin" && !who.tenant;
  const trainers = nodes?.filter(({ kind }) => kind === NodeKind.TRAINER) ?? [];
  const curators = nodes?.filter(({ kind }) => kind === NodeKind.CURATOR) ?? [];
  return (
    <section class="page">
      <div class="head">
        <h1>Cluster</h1>
        {nodes && <Summary nodes={nodes} trainers={trainers} />}
      </div>
      {failed && <Problem>{failed.message}</Problem>}
      {refused && <Problem>{refused}</Problem>}
      {nodes && (
        <>
          <NodeTable title="Trainers" nodes={trainers} steer={maySteer} refuse={setRefused} />
          <NodeTable title="Curators" nodes={curators} steer={maySteer} refuse={setRefused} />
        </>
      )}
    </section>
  );
}

const isThere = (node: Node) => node.reach === NodeReach.CONNECTED;

function Summary({ nodes, trainers }: { nodes: Node[]; trainers: Node[] }) {
  const there = nodes.filter(isThere).length;
  const usable = trainers.filter((node) => isThere(node) && !node.draining && !node.cordonReason);
  const slots = usable.reduce((sum, node) => sum + node.slots, 0);
  const used = trainers.reduce((sum, node) => sum + node.slotsUsed, 0);
  return (
    <dl class="facts tight">
      <div>
        <dt>Nodes</dt>
        <dd>
          {there} of {nodes.length} connected
        </dd>
      </div>
      <div>
        <dt>Slots</dt>
        <dd>
          {count(used)} used of {count(slots)}
        </dd>
      </div>
      <div>
        <dt>Draining</dt>
        <dd>{nodes.filter(({ draining }) => draining).length}</dd>
      </div>
    </dl>
  );
}

/** What is wrong with a node, the worst first. */
function troubles(node: Node): string[] {
  return [
    node.cordonReason && `cordoned: ${node.cordonReason}`,
    node.storeFault && `object store: ${node.storeFault}`,
    ...node.stuckSlots.map(({ slot, what }) => `slot ${slot} is stuck: ${what}`),
    node.rivalAddress && `another process at ${node.rivalAddress} calls itself by this name`,
  ].filter((text): text is string => Boolean(text));
}

function health(node: Node): { text: string; tone: string } {
  if (!isThere(node)) return { text: "silent", tone: "bad" };
  if (troubles(node).length > 0) return { text: "trouble", tone: "bad" };
  return node.draining ? { text: "draining", tone: "wait" } : { text: "connected", tone: "good" };
}

function NodeTable(props: { title: string; nodes: Node[]; steer: boolean; refuse: (why: string) => void }) {
  const { title, nodes } = props;
  const trains = title === "Trainers";
  return (
    <section class="block">
      <h2>{title}</h2>
      {nodes.length === 0 ? (
        <p class="empty">None is known.</p>
      ) : (
        <div class="scroll" role="region" aria-label={title} tabIndex={0}>
          <table>
            <thead>
              <tr>
                <th scope="col">Node</th>
                <th scope="col">Health</th>
                {trains && <th scope="col">Slots</th>}
                <th scope="col">Works on</th>
                {trains && <th scope="col">Device</th>}
                <th scope="col">Labels</th>
                <th scope="col">Version</th>
                {props.steer && (
                  <th scope="col">
                    <span class="sr">Actions</span>
                  </th>
                )}
              </tr>
            </thead>
            <tbody>
              {nodes.map((node) => (
                <Row key={node.nodeId} node={node} trains={trains} steer={props.steer} refuse={props.refuse} />
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}

function Row({ node, trains, steer, refuse }: { node: Node; trains: boolean; steer: boolean; refuse: (why: string) => void }) {
  const wrong = troubles(node);
  const works = [
    ...node.running.map(({ jobId, stage }) => ({ jobId, stage })),
    ...node.curating.map(({ jobId, stage }) => ({ jobId, stage })),
  ];
  return (
    <tr>
      <th scope="row">
        {node.nodeId}
        <span class="faint block">{node.address}</span>
      </th>
      <td>
        <Badge {...health(node)} />
        {node.reach === NodeReach.SILENT && <span class="faint"> {duration(node.silentSeconds)}</span>}
        {wrong.map((what) => (
          <p key={what} class="waits">
            {what}
          </p>
        ))}
      </td>
      {trains && (
        <td class="progress">
          <Bar part={node.slots ? node.slotsUsed / node.slots : 0} label={`Slots of ${node.nodeId}`} />
          <span class="faint">
            {node.slotsUsed} of {node.slots}
          </span>
        </td>
      )}
      <td>
        <ul class="plain">
          {works.map(({ jobId, stage }) => (
            <li key={`${jobId}/${stage}`}>
              <a href={href(["jobs", jobId])}>{jobId}</a> <span class="faint">{stage}</span>
            </li>
          ))}
        </ul>
      </td>
      {trains && (
        <td>
          {node.device}
          {node.deviceMemoryBytes > 0n && <span class="faint"> {figure(Number(node.deviceMemoryBytes) / 1e9)} GB</span>}
          {node.arithmetic?.processor && <span class="faint block">{node.arithmetic.processor}</span>}
        </td>
      )}
      <td class="labels">
        {Object.entries(node.labels).map(([key, label]) => (
          <span key={key} class="label">
            {key}={label}
          </span>
        ))}
      </td>
      <td>{node.version}</td>
      {steer && (
        <td>
          <Drain node={node} refuse={refuse} />
        </td>
      )}
    </tr>
  );
}

function Drain({ node, refuse }: { node: Node; refuse: (why: string) => void }) {
  const { api } = useSession();
  const [busy, setBusy] = useState(false);
  const undo = node.draining || node.cordonReason !== "";
  const go = async () => {
    setBusy(true);
    refuse("");
    await api.nodes.drainNode({ nodeId: node.nodeId, undo }).catch((thrown) => refuse(said(thrown)));
    setBusy(false);
  };
  return (
    <button type="button" disabled={busy} onClick={() => void go()} aria-label={`${undo ? "Take back into use" : "Drain"} ${node.nodeId}`}>
      {undo ? "Use again" : "Drain"}
    </button>
  );
}
