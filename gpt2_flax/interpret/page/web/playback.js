// Training played back: a slider over the steps that the run kept, and the loss beside it.

function startPlayback() {
  const several = live && data.steps.length > 1;
  byId("playback").hidden = byId("step-choice").hidden = !several;
  if (!several) return;
  const slider = byId("step"), play = byId("play"), last = data.steps.length - 1;
  slider.max = last;
  slider.addEventListener("input", () => select({ step: Number(slider.value) }, false));
  slider.addEventListener("change", () => select({ step: Number(slider.value) }));
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "play";
  };
  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (view.step === last) select({ step: 0 });
    play.textContent = "stop";
    timer = setInterval(() => {
      select({ step: view.step + 1 });
      if (view.step === last) stop();
    }, 900);
  });
  const mark = drawCurve(byId("curve"));
  onChange(() => {
    const { step } = data.steps[view.step];
    slider.value = view.step;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    byId("step-value").textContent = step;
    mark(step);
  });
}

// The run's loss as a picture; returns what marks a step in it.
function drawCurve(holder) {
  const { curve } = data;
  holder.parentElement.hidden = !curve;
  if (!curve) return () => {};
  const WIDTH = 640, HEIGHT = 180, LEFT = 44, BOTTOM = 24;
  const lowest = Math.min(...curve.loss, curve.floor ?? Infinity), highest = Math.max(...curve.loss);
  const lastStep = Math.max(...curve.steps, ...data.steps.map(({ step }) => step));
  const x = (step) => LEFT + ((WIDTH - LEFT - 8) * step) / lastStep;
  const y = (loss) => 8 + ((HEIGHT - BOTTOM - 16) * (highest - loss)) / (highest - lowest || 1);
  const shape = (tag, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const text = (at, says, attributes = {}) => shape("text", { x: at[0], y: at[1], ...attributes }, says);
  const points = curve.steps.map((step, i) => `${x(step)},${y(curve.loss[i])}`).join(" ");
  const line = (attributes) => shape("line", { y1: 8, y2: HEIGHT - BOTTOM, ...attributes });
  const marker = line({ class: "marker" });
  const drawing = shape("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "the loss over training",
  });
  drawing.append(
    ...data.steps.map(({ step }) => line({ class: "kept", x1: x(step), x2: x(step) })),
    shape("polyline", { class: "loss", points }),
    text([x(lastStep), HEIGHT - 8], `step ${lastStep}`, { "text-anchor": "end" }),
    text([LEFT, HEIGHT - 8], "0"),
    text([LEFT - 6, y(highest) + 8], highest.toFixed(2), { "text-anchor": "end" }),
    marker,
  );
  if (curve.floor !== null) {
    drawing.append(
      shape("line", { class: "floor", x1: LEFT, x2: WIDTH - 8, y1: y(curve.floor), y2: y(curve.floor) }),
      text([LEFT - 6, y(curve.floor)], curve.floor.toFixed(2), { "text-anchor": "end", class: "floor-text" }),
    );
  }
  drawing.addEventListener("click", (event) => {
    const box = drawing.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDTH;
    const off = ({ step }) => Math.abs(x(step) - at);
    let nearest = 0;
    data.steps.forEach((kept, place) => { if (off(kept) < off(data.steps[nearest])) nearest = place; });
    select({ step: nearest });
  });
  holder.append(drawing);
  return (step) => {
    marker.setAttribute("x1", x(step));
    marker.setAttribute("x2", x(step));
  };
}
