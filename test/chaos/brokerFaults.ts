/** Faults of the broker. */
import { jetstream, jetstreamManager } from "@nats-io/jetstream"
import { Effect } from "effect"
import { connectTo } from "../../bench/servers/connectTo.ts"
import { allShards, type MakeFault, retried, type Targets } from "./Fault.ts"
import { type BrokerNode, ordinaryAccess } from "./TestBroker.ts"

/** What concerns all of it. One at a time: a cluster of three serves with two. */
const ofBroker = (targets: Targets, target = "the broker") => ({
  target,
  locks: ["broker"],
  shards: allShards(targets),
})

const killNode = (targets: Targets, millis: number, node: () => Effect.Effect<BrokerNode>) => {
  let killed: BrokerNode | undefined
  return {
    ...ofBroker(targets, targets.broker.nodes.length === 1 ? "n1" : "a node"),
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

const killed: MakeFault = (targets, random) => {
  const node = random.pick(targets.broker.nodes)
  return killNode(targets, random.between(0, 3_000), () => Effect.succeed(node))
}

const leaderKilled =
  (of: "stream" | "consumer"): MakeFault =>
  (targets, random) =>
    killNode(targets, random.between(500, 5_000), () => leaderNode(targets, of))

/** It holds its connections and answers nothing. */
const hung: MakeFault = (targets, random) => {
  const { control, name } = random.pick(targets.broker.nodes)
  const signal = (signal: NodeJS.Signals) => Effect.sync(() => void process.kill(control.pid(), signal))
  return {
    ...ofBroker(targets, name),
    millis: random.between(3_000, 15_000),
    begin: signal("SIGSTOP"),
    end: signal("SIGCONT"),
  }
}

/** The workers' password is another one: they are thrown out, and not let in. */
const loginRefused: MakeFault = ({ broker, ...rest }, random) => ({
  ...ofBroker({ broker, ...rest }),
  millis: random.between(2_000, 6_000),
  begin: broker.allow({ ...ordinaryAccess, password: "changed" }),
  end: broker.allow(ordinaryAccess),
})

/** What each of them makes impossible: to pull, to answer, to acknowledge, to refuse, to park. */
const rights = ["$JS.API.CONSUMER.MSG.NEXT.>", "response", "$JS.ACK.>", "dead.>", "logs_parked.>"]

const rightRevoked: MakeFault = ({ broker, ...rest }, random) => {
  const right = random.pick(rights)
  return {
    ...ofBroker({ broker, ...rest }, right),
    millis: random.between(2_000, 6_000),
    begin: broker.allow({ ...ordinaryAccess, denied: [right] }),
    end: broker.allow(ordinaryAccess),
  }
}

const ballast = "ballast"

/** Somebody else's stream takes all of the store, until it is refused. */
const fillStore = async (urls: string) => {
  const connection = await connectTo(urls, { timeout: 5_000 })
  try {
    await (await jetstreamManager(connection)).streams.add({ name: ballast, subjects: [ballast] })
    const js = jetstream(connection)
    const bytes = new Uint8Array(500_000)
    for (;;) {
      const answers = await Promise.allSettled(
        Array.from({ length: 16 }, () => js.publish(ballast, bytes, { timeout: 10_000 })),
      )
      if (answers.some(({ status }) => status === "rejected")) return
    }
  } finally {
    await connection.close()
  }
}

const emptyStore = async (urls: string) => {
  const connection = await connectTo(urls, { timeout: 5_000 })
  try {
    await (await jetstreamManager(connection)).streams.delete(ballast)
  } finally {
    await connection.close()
  }
}

const full: MakeFault = (targets, random) => ({
  ...ofBroker(targets),
  millis: random.between(3_000, 8_000),
  // A worker makes room by what is done, which the run has to have seen.
  begin: Effect.andThen(
    targets.allSeen,
    Effect.promise(() => fillStore(targets.broker.urls)),
  ),
  end: retried(Effect.tryPromise(() => emptyStore(targets.broker.urls))),
})

export const brokerFaults = {
  "broker killed": killed,
  "broker hung": hung,
  "broker refuses the login": loginRefused,
  "broker revokes a right": rightRevoked,
} as const satisfies Record<string, MakeFault>

/** Of a cluster alone. */
export const clusterFaults = {
  "stream leader killed": leaderKilled("stream"),
  "consumer leader killed": leaderKilled("consumer"),
} as const satisfies Record<string, MakeFault>

/** Of one server alone: a cluster places its streams by the room of its nodes. */
export const singleFaults = { "broker full": full } as const satisfies Record<string, MakeFault>
