/** The pages: their links lead somewhere, their JSON is what the program takes and gives, and their commands can be typed. */
import { assert, describe, it, layer } from "@effect/vitest"
import { Effect, Layer, Result } from "effect"
import { execFile } from "node:child_process"
import { existsSync, globSync, readFileSync } from "node:fs"
import { dirname, join, normalize } from "node:path"
import { fileURLToPath } from "node:url"
import { decodeEvent } from "../../src/contract/Event.ts"
import { decodeAppend, decodeRead } from "../../src/contract/Request.ts"
import { placementOf } from "../../src/placement/guard.ts"
import { TestNats, TestPostgres } from "../../bench/servers/privateServers.ts"
import { inherited, startWorkerProcess, workerEnvironment } from "../service/service.ts"

const root = fileURLToPath(new URL("../../", import.meta.url))
const read = (file: string) => readFileSync(join(root, file), "utf8")
const pages = globSync(["README.md", "docs/**/*.md", "bench/*.md", "test/**/*.md"], { cwd: root }).toSorted()

/** The fenced blocks of a language. */
const blocks = (text: string, language: string): ReadonlyArray<string> =>
  Array.from(text.matchAll(new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\`$`, "gms")), ([, block]) => block!)

/** The anchor of a heading, as GitHub makes it. */
const anchorOf = (heading: string) =>
  heading
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N}\s_-]/gu, "")
    .replaceAll(" ", "-")

const anchorsOf = (file: string) =>
  Array.from(
    read(file)
      .replaceAll(/^```.*?^```$/gms, "")
      .matchAll(/^#+ (.+)$/gm),
    ([, heading]) => anchorOf(heading!),
  )

describe("pages", () => {
  it("every link within the repository leads somewhere", () => {
    let links = 0
    for (const page of pages) {
      for (const [, target] of read(page).matchAll(/\]\(([^)\s]+)\)/g)) {
        if (/^https?:/.test(target!)) continue
        links++
        const [file, anchor] = target!.split("#")
        const path = file === "" ? page : normalize(join(dirname(page), file!))
        assert.isTrue(existsSync(join(root, path)), `${page}: ${target}`)
        if (anchor !== undefined) assert.include(anchorsOf(path), anchor, `${page}: ${target}`)
      }
    }
    assert.isAbove(links, 50)
  })

  it("the README is short, and the index has every page", () => {
    assert.isAtMost(Buffer.byteLength(read("README.md")), 10_000)
    for (const page of pages.filter((file) => /^docs\/[a-z-]+\.md$/.test(file))) {
      assert.include(read("docs/README.md"), `](${page.slice("docs/".length)})`)
    }
  })
})

describe("JSON", () => {
  const limits = { maxPayload: 1024 ** 2, responseTopic: "response" }
  const examples = (page: string) =>
    blocks(read(page), "json").flatMap((block) => (block.startsWith('{"') ? block.trim().split("\n") : [block]))

  it.each(["README.md", "docs/contract.md"])("%s: requests are accepted, and events are read", (page) => {
    const kinds = examples(page).map((text) => {
      const value = JSON.parse(text) as Readonly<Record<string, unknown>>
      if ("version" in value) {
        const shards = ["a", "b"].map((name) => ({ name, weight: 1 }))
        assert.deepStrictEqual(value, JSON.parse(JSON.stringify(placementOf(shards))))
        return "placement"
      }
      if ("type" in value) {
        assert.isDefined(decodeEvent(text), text)
        return `${String(value["type"])} ${String(value["status"])}`
      }
      const isTaken =
        "log" in value ? Result.isSuccess(decodeAppend(text, limits)) : Result.isSuccess(decodeRead(text, limits))
      assert.isTrue(isTaken, text)
      return "log" in value ? "append" : "read"
    })
    for (const kind of ["append", "read", "append ok", "query ok", "append error"]) assert.include(kinds, kind)
  })
})

/** The lines of all shell blocks of a page, without their comments, and with what goes on in the next line. */
const commandsOf = (page: string) =>
  blocks(read(page), "sh").flatMap((block) =>
    block
      .replaceAll(/\\\n\s*/g, "")
      .split("\n")
      .map((line) => line.replace(/(^|\s+)# .*$/, "").trim())
      .filter((line) => line !== ""),
  )

const own = /npm run -s objectlog -- ([^|>)]+)/

/** Runs a line in a shell; its output, or why it failed. */
const shell = (line: string, env: Readonly<Record<string, string>>) =>
  Effect.callback<string>((resume) => {
    const child = execFile("sh", ["-c", line], { cwd: root, env: { ...inherited, ...env }, timeout: 60_000 })
    let output = ""
    child.stdout!.on("data", (text) => (output += String(text)))
    child.stderr!.on("data", (text) => (output += String(text)))
    child.once("close", (code, signal) =>
      resume(code === 0 ? Effect.succeed(output) : Effect.die(new Error(`${line}: ${code ?? signal}: ${output}`))),
    )
    return Effect.sync(() => child.kill("SIGKILL"))
  })

describe("commands", () => {
  const all = pages.flatMap((page) => commandsOf(page).map((line) => ({ page, line })))

  it("are those of the npm scripts, of the compose files, or files of the repository", () => {
    const { scripts } = JSON.parse(read("package.json")) as { scripts: Readonly<Record<string, string>> }
    const compose = read("docker-compose.yaml") + read("docker-compose.test.yaml")
    for (const { line, page } of all) {
      for (const [, script] of line.matchAll(/npm run (?:-s )?([a-z:]+)/g)) assert.property(scripts, script!, page)
      for (const [, file] of line.matchAll(/(?:^|\s)(?:-f )?((?:test|deploy|\.ci|docker-compose)[\w./-]+)/g)) {
        assert.isTrue(existsSync(join(root, file!)), `${page}: ${line}`)
      }
      for (const [, profile] of line.matchAll(/--profile (\w+)/g)) assert.include(compose, `profiles: [${profile}]`)
      for (const [, service] of line.matchAll(/--(?:scale|exit-code-from) (\w+)/g)) {
        assert.match(compose, new RegExp(`^  ${service}:$`, "m"), `${page}: ${line}`)
      }
    }
    assert.isAbove(all.length, 30)
  })

  it.effect("have only options that their --help has", () =>
    Effect.gen(function* () {
      const byCommand = new Map<string, Set<string>>()
      for (const { line } of all) {
        const words = own.exec(line)?.[1]!.trim().split(/\s+/)
        if (words === undefined) continue
        const command = words[0] === "dead" ? words.slice(0, 2).join(" ") : words[0]!
        const options = byCommand.get(command) ?? new Set()
        for (const word of words) if (word.startsWith("--")) options.add(word)
        byCommand.set(command, options)
      }
      assert.isAbove(byCommand.size, 8)
      yield* Effect.forEach(
        byCommand,
        Effect.fnUntraced(function* ([command, options]) {
          const help = yield* shell(`src/objectlog.js ${command} --help`, {})
          assert.include(help, `objectlog ${command}`)
          for (const option of options) assert.include(help, option, command)
        }),
        { concurrency: 2 },
      )
    }),
  )
})

const service = Layer.provideMerge(
  Layer.effectDiscard(startWorkerProcess),
  Layer.mergeAll(TestNats.layer, TestPostgres.layer(2)),
)

layer(service, { excludeTestServices: true, timeout: "60 seconds" })("the README's session", (it) => {
  it.effect("does what it says", () =>
    Effect.gen(function* () {
      const { NATS_URL } = yield* workerEnvironment
      const lines = commandsOf("README.md").filter((line) => own.test(line) && !/ url\b/.test(line))
      const outputs: Array<string> = []
      for (const line of lines) outputs.push(yield* shell(line, { NATS_URL }))
      const [append, appends, query, load] = outputs
      assert.strictEqual(lines.length, 4)
      assert.match(append!, /\b1\b/)
      assert.match(appends!, /\b2\b/)
      assert.match(query!, /disk 3 replaced\n.*firmware 2\.1 installed/)
      assert.include(load!, "verified")
    }),
  )
})
