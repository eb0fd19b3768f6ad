/** Faults of the links between a worker, or all of them, and the broker or a shard. */
import { Effect } from "effect"
import { allShards, type MakeFault } from "./Fault.ts"
import type { Randomness } from "./Randomness.ts"
import type { LinkState, TcpProxy } from "../../bench/servers/TcpProxy.ts"

/** How long each lasts, at least and at most. */
const linkStates = {
  cut: [200, 3_000],
  stalled: [2_000, 8_000],
  slowed: [2_000, 6_000],
  "client half-open": [2_000, 8_000],
  "server half-open": [3_000, 12_000],
} as const
type LinkFault = keyof typeof linkStates

const linkState = (fault: LinkFault, random: Randomness): LinkState => {
  if (fault !== "slowed") return { kind: fault }
  return { kind: "slow", latencyMillis: random.between(20, 120), bytesPerSecond: random.between(50, 500) * 1_024 }
}

const linkFault =
  (part: "broker" | "shard", fault: LinkFault): MakeFault =>
  (targets, random) => {
    const [least, most] = linkStates[fault]
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
      target: part === "broker" ? who : `${who}, ${targets.shards.shards[index]!.name}`,
      locks: struck.map((worker) => `${worker.name} ${part} link${part === "broker" ? "" : ` ${index}`}`),
      shards: part === "broker" ? allShards(targets) : [index],
      millis: random.between(least, most),
      begin: set(state),
      end: set({ kind: "open" }),
    }
  }

const faultsOf = <Part extends "broker" | "shard">(part: Part) =>
  Object.fromEntries(
    (Object.keys(linkStates) as Array<LinkFault>).map((fault) => [`${part} link ${fault}`, linkFault(part, fault)]),
  ) as Record<`${Part} link ${LinkFault}`, MakeFault>

export const linkFaults = { ...faultsOf("broker"), ...faultsOf("shard") }
