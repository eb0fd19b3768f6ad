/** What a worker with nothing to do costs. */
import { Effect } from "effect"
import { cpuMicros, residentMemory, wakeUps } from "../Processes.ts"
import { add } from "../Report.ts"
import { onFreshServers, startSystem } from "../Rig.ts"

const scenario = "Idle"
const settleMillis = 5_000

export const runIdle = (seconds: number) =>
  onFreshServers(
    Effect.gen(function* () {
      const { children } = yield* startSystem("objectlog")
      const pid = children[0]!.pid!
      yield* Effect.sleep(settleMillis)
      const before = [yield* cpuMicros([pid]), yield* wakeUps(pid)] as const
      yield* Effect.sleep(seconds * 1_000)
      const after = [yield* cpuMicros([pid]), yield* wakeUps(pid)] as const
      const share = (after[0] - before[0]) / (seconds * 10_000)
      yield* add({
        scenario,
        what: "CPU of one core",
        value: share,
        unit: "%",
        bar: { text: "≤ 1 %", reached: share <= 1 },
      })
      yield* add({ scenario, what: "wake-ups of its threads", value: (after[1] - before[1]) / seconds, unit: "/s" })
      yield* add({ scenario, what: "memory (RSS)", value: yield* residentMemory(pid, "VmRSS"), unit: "MiB" })
    }),
  )
