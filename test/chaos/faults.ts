/** Every kind of fault. */
import { brokerFaults, clusterFaults, singleFaults } from "./brokerFaults.ts"
import type { Fault, MakeFault, Targets } from "./Fault.ts"
import { linkFaults } from "./linkFaults.ts"
import type { Randomness } from "./Randomness.ts"
import { diskFaults, longFaults, shardFaults } from "./shardFaults.ts"
import { workerFaults } from "./workerFaults.ts"

const always = { ...workerFaults, ...brokerFaults, ...shardFaults, ...linkFaults }
const all = { ...always, ...clusterFaults, ...singleFaults, ...longFaults, ...diskFaults }

export type Kind = keyof typeof all

const kindsOf = <K extends Kind>(faults: Record<K, MakeFault>) => Object.keys(faults) as Array<K>

/** The kinds that can be had with these targets; `shard stopped for long` is planned apart from the others. */
export const kindsFor = ({ broker, shards }: Pick<Targets, "broker" | "shards">): ReadonlyArray<Kind> => [
  ...kindsOf(always),
  ...(broker.nodes.length > 1 ? kindsOf(clusterFaults) : kindsOf(singleFaults)),
  ...("skipped" in shards.smallDisk ? [] : kindsOf(diskFaults)),
]

/** A fault of a kind; the target and the rest are left to chance. */
export const makeFault = (kind: Kind, targets: Targets, random: Randomness, longMillis: number): Fault => ({
  kind,
  ...all[kind](targets, random, longMillis),
})
