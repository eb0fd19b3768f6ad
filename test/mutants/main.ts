/**
 * `npm run mutants`: makes each mistake of mutants.ts in a copy of the program, one at a time, and runs the tests that should notice.
 *
 * Prints a line for each that survives, and how many were caught. Exit code 1 if fewer than 85 of 100 were: an aimed test is
 * missing then. `--file NAME` and `--from N`, `--count N` take a part of them; `--workers N` run at once (default 2). `--out FILE`
 * keeps what became of each; `--again FILE` takes only those that were not caught there.
 */
import { spawn } from "node:child_process"
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { groups } from "./mutants.ts"

const root = fileURLToPath(new URL("../../", import.meta.url))
const limitMillis = 300_000
const wantedShare = 0.85

const { values } = parseArgs({
  options: {
    file: { type: "string" },
    from: { type: "string", default: "0" },
    count: { type: "string", default: "100000" },
    workers: { type: "string", default: "2" },
    out: { type: "string" },
    again: { type: "string" },
  },
})

const before =
  values.again === undefined
    ? []
    : (JSON.parse(readFileSync(values.again, "utf8")) as ReadonlyArray<Readonly<Record<string, unknown>>>)
const caughtBefore = new Set(
  before
    .filter(({ caught }) => caught === true)
    .map(({ file, from, to }) => `${String(file)} ${String(from)} ${String(to)}`),
)

const mutants = groups
  .flatMap(({ changes, file, tests }) => changes.map(([from, to, reason]) => ({ file, tests, from, to, reason })))
  .filter(({ file }) => values.file === undefined || file.includes(values.file))
  .filter(({ file, from, to }) => !caughtBefore.has(`${file} ${from} ${to}`))
  .slice(Number(values.from), Number(values.from) + Number(values.count))

type Mutant = (typeof mutants)[number]

const running = new Set<number>()
const folders: Array<string> = []

const cleanUp = () => {
  for (const pid of running) {
    try {
      process.kill(-pid, "SIGKILL")
    } catch {
      // It has ended meanwhile.
    }
  }
  for (const folder of folders) rmSync(folder, { recursive: true, force: true })
}
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => {
    cleanUp()
    process.exit(1)
  })
}

/** A copy of what the tests need. */
const copy = (): string => {
  const folder = mkdtempSync(join(tmpdir(), "objectlog-mutants-"))
  folders.push(folder)
  const files = [
    "src",
    "test",
    "bench",
    "docs",
    "deploy",
    "package.json",
    "tsconfig.json",
    "vitest.config.ts",
    "README.md",
  ]
  const more = ["Dockerfile", "docker-compose.yaml", "docker-compose.test.yaml", ".npmrc", ".ci"]
  for (const file of [...files, ...more]) cpSync(join(root, file), join(folder, file), { recursive: true })
  symlinkSync(join(root, "node_modules"), join(folder, "node_modules"))
  return folder
}

/** Runs tests; whether one failed. A run that hangs counts as failed. */
const fails = (folder: string, tests: ReadonlyArray<string>): Promise<boolean> =>
  new Promise((resolve) => {
    const argv = [join(root, "node_modules/vitest/vitest.mjs"), "run", "--bail", "1", ...tests]
    const child = spawn(process.execPath, argv, { cwd: folder, stdio: "ignore", detached: true })
    running.add(child.pid!)
    const timer = setTimeout(() => process.kill(-child.pid!, "SIGKILL"), limitMillis)
    child.once("exit", (code) => {
      clearTimeout(timer)
      running.delete(child.pid!)
      resolve(code !== 0)
    })
  })

const isCaught = async (folder: string, { file, from, tests, to }: Mutant): Promise<boolean> => {
  const path = join(folder, "src", file)
  const source = readFileSync(path, "utf8")
  writeFileSync(
    path,
    source.replace(from, () => to),
  )
  try {
    // One after the other: most are caught by the first, and the later ones take long.
    for (const test of tests) if (await fails(folder, [test])) return true
    return false
  } finally {
    writeFileSync(path, source)
  }
}

const results: Array<Mutant & { readonly caught: boolean }> = []
let next = 0

const work = async () => {
  const folder = copy()
  while (next < mutants.length) {
    const mutant = mutants[next++]!
    const caught = await isCaught(folder, mutant)
    results.push({ ...mutant, caught })
    if (!caught) {
      const argued = mutant.reason === undefined ? "" : `  (${mutant.reason})`
      process.stdout.write(
        `survives  ${mutant.file}: ${JSON.stringify(mutant.from)} → ${JSON.stringify(mutant.to)}${argued}\n`,
      )
    }
    process.stderr.write(`${results.length}/${mutants.length}\r`)
    if (values.out !== undefined) writeFileSync(values.out, JSON.stringify(results, undefined, 2))
  }
}

try {
  await Promise.all(Array.from({ length: Number(values.workers) }, work))
} finally {
  cleanUp()
}
const caught = results.filter((result) => result.caught).length
const share = caught / results.length
process.stdout.write(`${caught} of ${results.length} caught, ${Math.floor(share * 100)} %\n`)
process.exitCode = share >= wantedShare ? 0 : 1
