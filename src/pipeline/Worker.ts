/** A worker: both pipelines, side by side, on whatever layers are given. */
import { Effect } from "effect"
import { runAppends } from "./AppendPipeline.ts"
import { runQueries } from "./QueryPipeline.ts"

export interface WorkerOptions {
  /** Where events go and what `reply_to` may lie below. */
  readonly responseTopic: string
  /** Log every message at debug level. */
  readonly debug: boolean
}

/** Runs until interrupted; a failure or defect of either pipeline ends both. */
export const runWorker = (options: WorkerOptions) =>
  Effect.all([runAppends(options), runQueries(options)], { concurrency: "unbounded", discard: true })
