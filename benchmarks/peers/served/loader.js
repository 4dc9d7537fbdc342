// The path names a function and a copy of it, FUNCTION.COPY; a copy is loaded into an isolate of its own when first asked for.
// A stage is NAME = sN_I: stage I of a path of N.
export default {
  fetch(request, env) {
    const path = new URL(request.url).pathname.slice(1)
    const [name, copy] = path.split(".")
    const stage = name.match(/^s(\d+)_(\d+)$/)
    const next = stage && +stage[2] + 1 < +stage[1] ? `s${stage[1]}_${+stage[2] + 1}.${copy}` : ""
    const worker = env.LOADER.get(path, () => ({
      compatibilityDate: "2026-01-01",
      mainModule: "main.js",
      modules: { "main.js": stage ? env.STAGE : env.ECHO },
      env: { NEXT: next },
      globalOutbound: env.SELF,
    }))
    return worker.getEntrypoint().fetch(request)
  },
}
