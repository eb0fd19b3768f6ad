/** The tables that a simulation prints. */
import { type Coverage, faultClasses } from "./faults.ts"
import { type Mutation, mutations } from "./mutations.ts"
import { kindOf } from "./Plan.ts"
import { simulate } from "./simulate.ts"

export const coverageTable = (coverage: Coverage): string =>
  ["| fault | struck |", "|---|---|", ...faultClasses.map((name) => `| ${name} | ${coverage.of(name)} |`)].join("\n")

export interface Caught {
  readonly seed: number
  /** What the checker said first. */
  readonly violation: string
}

/** The seed whose run catches a mistake, tried one after the other in so many runs. */
export const caughtBy = (mutation: Mutation, runsMax: number): Caught | undefined => {
  for (let seed = mutation.from ?? 1, runs = 0; runs < runsMax; seed++) {
    if (mutation.kind !== undefined && kindOf(seed) !== mutation.kind) continue
    runs++
    const [violation] = simulate(seed, { mutation }).violations
    if (violation !== undefined) return { seed, violation }
  }
  return undefined
}

export const mutationTable = (runsMax: number): { readonly text: string; readonly caught: boolean } => {
  const rows = mutations.map((mutation) => ({ mutation, caught: caughtBy(mutation, runsMax) }))
  const line = ({ mutation, caught }: (typeof rows)[number]) =>
    caught === undefined
      ? `| ${mutation.name} | | not caught |`
      : `| ${mutation.name} | ${caught.seed} | ${caught.violation.slice(0, 160)} |`
  return {
    text: ["| deliberate mistake | caught by seed | what the checker says |", "|---|---|---|", ...rows.map(line)].join(
      "\n",
    ),
    caught: rows.every(({ caught }) => caught !== undefined),
  }
}
