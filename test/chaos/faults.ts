/** Every kind of fault: what it strikes, for how long, how it begins and how it ends. */
import { jetstreamManager } from "@nats-io/jetstream"
import { Effect, Schedule } from "effect"
import type { Randomness } from "./Randomness.ts"
import type { LinkState, TcpProxy } from "./TcpProxy.ts"
import type { BrokerNode, TestBroker } from "./TestBroker.ts"
import { onShard } from "../embedded/onShard.ts"
import type { TestShards } from "./TestShards.ts"
import type { Worker } from "./Workers.ts"
import { connectTo } from "../embedded/connectTo.ts"

/** What faults strike. */
export interface Targets {
  readonly broker: TestBroker["Service"]
  readonly shards: TestShards["Service"]
  readonly workers: ReadonlyArray<Worker>
  /** The broker's `ack_wait` during the run. */
  readonly ackWaitMillis: number
  readonly violation: (problem: string) => void
}

/** One fault of the plan. */
export interface Fault {
  readonly kind: Kind
  /** Shown in the log. */
  readonly target: string
  /** Two faults with a lock in common don't strike at the same time. */
  readonly locks: ReadonlyArray<string>
  /** Shards whose appends may be delayed. */
  readonly shards: ReadonlyArray<number>
  readonly millis: number
  readonly begin: Effect.Effect<void>
  readonly end: Effect.Effect<void>
}

/** Part of what a link can be, and how long a fault of that kind lasts. */
const linkFaults = {
  cut: [200, 3_000],
  stalled: [2_000, 8_000],
  slowed: [2_000, 6_000],
  "client half-open": [2_000, 8_000],
  "server half-open": [3_000, 12_000],
} as const
type LinkFault = keyof typeof linkFaults

export type Kind =
  | "worker killed"
  | "worker paused"
  | "workers rolled"
  | "broker killed"
  | "stream leader killed"
  | "consumer leader killed"
  | "shard stopped"
  | "shard stopped for long"
  | "sessions terminated"
  | "disk full"
  | `broker link ${LinkFault}`
  | `shard link ${LinkFault}`

const linkKinds = (part: "broker" | "shard") =>
  (Object.keys(linkFaults) as Array<LinkFault>).map((fault): Kind => `${part} link ${fault}`)

/** The kinds that can be had with these targets; `shard stopped for long` is planned apart from the others. */
export const kindsFor = (targets: Pick<Targets, "broker" | "shards">): ReadonlyArray<Kind> => [
  "worker killed",
  "worker paused",
  "workers rolled",
  "broker killed",
  ...(targets.broker.nodes.length > 1 ? (["stream leader killed", "consumer leader killed"] as const) : []),
  "shard stopped",
  "sessions terminated",
  ...("skipped" in targets.shards.smallDisk ? [] : (["disk full"] as const)),
  ...linkKinds("broker"),
  ...linkKinds("shard"),
]

/** An orderly stop is bounded: transactions 5 s, the connection 2 s, and something for a busy machine. */
const stopMillis = 20_000

const linkState = (fault: LinkFault, random: Randomness): LinkState => {
  if (fault !== "slowed") return { kind: fault }
  return { kind: "slow", latencyMillis: random.between(20, 120), bytesPerSecond: random.between(50, 500) * 1_024 }
}

const allShards = (targets: Targets) => targets.shards.shards.map((_, index) => index)

const retried = <A, E>(self: Effect.Effect<A, E>): Effect.Effect<A> =>
  self.pipe(Effect.retry({ schedule: Schedule.spaced("200 millis"), times: 50 }), Effect.orDie)

const killNode = (targets: Targets, kind: Kind, millis: number, node: () => Effect.Effect<BrokerNode>): Fault => {
  let killed: BrokerNode | undefined
  return {
    kind,
    target: targets.broker.nodes.length === 1 ? "n1" : "a node",
    // One at a time: a cluster of three serves with two.
    locks: ["broker"],
    shards: allShards(targets),
    millis,
    begin: Effect.flatMap(Effect.suspend(node), (found) => {
      killed = found
      return found.control.stop("SIGKILL")
    }),
    end: Effect.suspend(() => (killed === undefined ? Effect.void : retried(killed.control.start))),
  }
}

/** Where the intake stream, or its consumer, is led now; some node while nobody knows. */
const leaderNode = (targets: Targets, of: "stream" | "consumer"): Effect.Effect<BrokerNode> =>
  Effect.tryPromise(async () => {
    const connection = await connectTo(targets.broker.urls, { timeout: 2_000 })
    try {
      const manager = await jetstreamManager(connection, { checkAPI: false, timeout: 2_000 })
      const info =
        of === "stream"
          ? await manager.streams.info("objectlog_logs")
          : await manager.consumers.info("objectlog_logs", "objectlog")
      return targets.broker.nodes.find((node) => node.name === info.cluster?.leader)
    } finally {
      await connection.close()
    }
  }).pipe(
    Effect.orElseSucceed(() => undefined),
    Effect.map((found) => found ?? targets.broker.nodes[0]!),
  )

const stopShard = (targets: Targets, kind: Kind, index: number, millis: number): Fault => {
  const shard = targets.shards.shards[index]!
  return {
    kind,
    target: shard.name,
    locks: [`shard ${index}`],
    shards: [index],
    millis,
    // SIGQUIT is PostgreSQL's immediate stop: no checkpoint, recovery at the next start.
    begin: shard.control.stop("SIGQUIT"),
    end: retried(shard.control.start),
  }
}

const linkFault = (targets: Targets, part: "broker" | "shard", fault: LinkFault, random: Randomness): Fault => {
  const [least, most] = linkFaults[fault]
  const index = random.between(0, targets.shards.shards.length - 1)
  // One worker's link, or that of all of them.
  const struck = random.chance(0.5) ? [random.pick(targets.workers)] : targets.workers
  const links: ReadonlyArray<TcpProxy> = struck.flatMap((worker) =>
    part === "broker" ? worker.brokerLinks : [worker.shardLinks[index]!],
  )
  const who = struck.length === 1 ? struck[0]!.name : "all workers"
  const state = linkState(fault, random)
  const set = (next: LinkState) => Effect.sync(() => links.forEach((link) => link.set(next)))
  return {
    kind: `${part} link ${fault}`,
    target: part === "broker" ? who : `${who}, ${targets.shards.shards[index]!.name}`,
    locks: struck.map((worker) => `${worker.name} ${part} link${part === "broker" ? "" : ` ${index}`}`),
    shards: part === "broker" ? allShards(targets) : [index],
    millis: random.between(least, most),
    begin: set(state),
    end: set({ kind: "open" }),
  }
}

const fillDisk = (targets: Targets, random: Randomness): Fault => {
  const disk = targets.shards.smallDisk
  if ("skipped" in disk) throw new Error(disk.skipped)
  const shard = targets.shards.shards[disk.shard]!
  const answers = onShard(shard, (sql) => sql`select 1`)
  return {
    kind: "disk full",
    target: shard.name,
    locks: [`shard ${disk.shard}`],
    shards: [disk.shard],
    millis: random.between(3_000, 8_000),
    begin: disk.fill,
    // PostgreSQL may have given up, when it could not write its log: then it is for the operator to start it again.
    end: disk.free.pipe(
      Effect.andThen(Effect.retry(answers, { schedule: Schedule.spaced("200 millis"), times: 10 })),
      Effect.catch(() => retried(shard.control.start)),
      Effect.asVoid,
    ),
  }
}

const rollWorkers = (targets: Targets): Fault => ({
  kind: "workers rolled",
  target: "all workers",
  locks: targets.workers.map((worker) => worker.name),
  shards: allShards(targets),
  millis: 0,
  begin: Effect.forEach(
    targets.workers,
    Effect.fnUntraced(function* (worker) {
      const code = yield* worker.end("SIGTERM", stopMillis)
      if (code !== 0) targets.violation(`${worker.name} ended with ${code} after SIGTERM, expected 0`)
      yield* worker.start
      // During an outage it may have to wait; the next one is not held up by that for long.
      yield* Effect.timeoutOption(worker.ready, "5 seconds")
    }),
    { discard: true },
  ),
  end: Effect.void,
})

const strikeWorker = (targets: Targets, kind: "worker killed" | "worker paused", random: Randomness): Fault => {
  const worker = random.pick(targets.workers)
  const killed = kind === "worker killed"
  return {
    kind,
    target: worker.name,
    locks: [worker.name],
    shards: allShards(targets),
    // A paused one for longer than the broker waits for it.
    millis: killed ? random.between(0, 3_000) : Math.round(targets.ackWaitMillis * (1.1 + 0.5 * random.next())),
    begin: killed ? Effect.asVoid(worker.end("SIGKILL", 5_000)) : worker.signal("SIGSTOP"),
    end: killed ? worker.start : worker.signal("SIGCONT"),
  }
}

const terminateSessions = (targets: Targets, random: Randomness): Fault => {
  const index = random.between(0, targets.shards.shards.length - 1)
  const shard = targets.shards.shards[index]!
  return {
    kind: "sessions terminated",
    target: shard.name,
    locks: [],
    shards: [index],
    millis: 0,
    // The shard may be down for another fault's sake.
    begin: Effect.ignore(
      onShard(
        shard,
        (sql) => sql`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'objectlog'`,
      ),
    ),
    end: Effect.void,
  }
}

/** A fault of a kind; the target and the rest are left to chance. */
export const makeFault = (kind: Kind, targets: Targets, random: Randomness, longMillis: number): Fault => {
  const shard = random.between(0, targets.shards.shards.length - 1)
  switch (kind) {
    case "worker killed":
    case "worker paused":
      return strikeWorker(targets, kind, random)
    case "workers rolled":
      return rollWorkers(targets)
    case "broker killed": {
      const node = random.pick(targets.broker.nodes)
      return killNode(targets, kind, random.between(0, 3_000), () => Effect.succeed(node))
    }
    case "stream leader killed":
      return killNode(targets, kind, random.between(500, 5_000), () => leaderNode(targets, "stream"))
    case "consumer leader killed":
      return killNode(targets, kind, random.between(500, 5_000), () => leaderNode(targets, "consumer"))
    case "shard stopped":
      return stopShard(targets, kind, shard, random.between(500, 6_000))
    case "shard stopped for long":
      return stopShard(targets, kind, shard, longMillis)
    case "sessions terminated":
      return terminateSessions(targets, random)
    case "disk full":
      return fillDisk(targets, random)
    default: {
      const [part, , ...rest] = kind.split(" ")
      return linkFault(targets, part as "broker" | "shard", rest.join(" ") as LinkFault, random)
    }
  }
}
