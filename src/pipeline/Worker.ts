/** A worker: both pipelines, side by side, on whatever layers are given. */
import { Effect } from "effect"
import { Broker } from "../broker/Broker.ts"
import { runAppends } from "./AppendPipeline.ts"
import { runQueries } from "./QueryPipeline.ts"
import * as Refusals from "./Refusals.ts"
import type { WorkerOptions } from "./WorkerOptions.ts"

/**
 * Runs until interrupted; a failure or defect of either pipeline ends both, and so does the end of the connection to the
 * broker, after which neither could do anything more.
 */
export const runWorker = (options: WorkerOptions) =>
  Effect.gen(function* () {
    const { closed } = yield* Broker
    // From before the pipelines until after them: they refuse to the last.
    const refusals = yield* Refusals.make
    yield* Effect.all([runAppends(options), runQueries(options), refusals.run, closed], {
      concurrency: "unbounded",
      discard: true,
    }).pipe(Effect.provideService(Refusals.Refusals, refusals))
  }).pipe(Effect.scoped)
