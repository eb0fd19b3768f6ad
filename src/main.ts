/**
 * The program `objectlog`: its commands and its exit codes.
 *
 * 0: done, or stopped by a signal. 128 + n: ended at once by a second signal n. 1: failed. 2: wrong configuration or placement; nothing was touched.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Cause, Effect, Exit, Layer, type Runtime } from "effect"
import { CliError, Command } from "effect/cli"
import { appendCommand } from "./cli/append.ts"
import { deadCommand } from "./cli/dead.ts"
import { loadCommand } from "./cli/load.ts"
import { migrateCommand } from "./cli/migrate.ts"
import { lastWords, outliveReaders, OutputFailed } from "./cli/output.ts"
import { queryCommand } from "./cli/query.ts"
import { replayCommand } from "./cli/replay.ts"
import { endInTime } from "./cli/shutdown.ts"
import { startCommand } from "./cli/start.ts"
import { workerCommand } from "./cli/worker.ts"
import { usageLayer } from "./cli/usage.ts"
import { urlCommand } from "./cli/url.ts"
import { version } from "./config/version.ts"

const wrongConfiguration = new Set([
  "ConfigInvalid",
  "DataFolderUnusable",
  "ForeignEntry",
  "HeapTooSmall",
  "PlacementMismatch",
  "ShardUnsuitable",
  "BrokerMisconfigured",
  "InvalidPlacement",
])

const tagOf = (error: unknown): string =>
  typeof error === "object" && error !== null && "_tag" in error ? String(error._tag) : ""

/** One line for an expected failure; the whole cause for a defect, which is a bug. */
const report = (cause: Cause.Cause<unknown>): void => {
  if (Cause.hasInterruptsOnly(cause)) return
  const error = Cause.squash(cause)
  // What is wrong with the command line, or with standard output, has been said.
  if (CliError.isCliError(error) || error instanceof OutputFailed) return
  lastWords(Cause.hasDies(cause) ? Cause.pretty(cause) : error instanceof Error ? error.message : String(error))
}

const teardown: Runtime.Teardown = (exit, onExit) => {
  if (Exit.isSuccess(exit)) return onExit(0)
  // An interrupted fiber's exit says nothing else; `load` still finds out whether all is right, and leaves the code.
  if (Cause.hasInterruptsOnly(exit.cause)) return onExit(Number(process.exitCode ?? 0))
  report(exit.cause)
  onExit(wrongConfiguration.has(tagOf(Cause.squash(exit.cause))) ? 2 : 1)
}

endInTime()
outliveReaders()

Command.make("objectlog").pipe(
  Command.withDescription("an append-only log of text messages for every object"),
  Command.withSubcommands([
    startCommand,
    workerCommand,
    migrateCommand,
    appendCommand,
    queryCommand,
    deadCommand,
    replayCommand,
    urlCommand,
    loadCommand,
  ]),
  Command.run({ version }),
  Effect.provide(Layer.merge(NodeServices.layer, usageLayer)),
  (program) => NodeRuntime.runMain(program, { disableErrorReporting: true, teardown }),
)
