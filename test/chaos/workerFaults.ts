/** Faults of workers. */
import { Effect } from "effect"
import { allShards, type MakeFault } from "./Fault.ts"

/** An orderly stop is bounded: transactions 5 s, the connection 2 s, and something for a busy machine. */
const stopMillis = 20_000

const rolled: MakeFault = (targets) => ({
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

const killed: MakeFault = (targets, random) => {
  const worker = random.pick(targets.workers)
  return {
    target: worker.name,
    locks: [worker.name],
    shards: allShards(targets),
    millis: random.between(0, 3_000),
    begin: Effect.asVoid(worker.end("SIGKILL", 5_000)),
    end: worker.start,
  }
}

const paused: MakeFault = (targets, random) => {
  const worker = random.pick(targets.workers)
  return {
    target: worker.name,
    locks: [worker.name],
    shards: allShards(targets),
    // For longer than the broker waits for it.
    millis: Math.round(targets.ackWaitMillis * (1.1 + 0.5 * random.next())),
    begin: worker.signal("SIGSTOP"),
    end: worker.signal("SIGCONT"),
  }
}

export const workerFaults = {
  "worker killed": killed,
  "worker paused": paused,
  "workers rolled": rolled,
} as const satisfies Record<string, MakeFault>
