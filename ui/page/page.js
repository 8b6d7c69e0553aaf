// What the page does without asking Python: theme, keys, the hint, the address, and the two ways
// events come in: elements that carry data-send, and the viewport's events socket.
() => {
  const page = (window.worldstereo ??= {});
  const $ = (selector) => document.querySelector(selector);
  const frame = () => $('#viewport iframe');
  const stored = (key) => { try { return localStorage.getItem('worldstereo.' + key); } catch { return null; } };
  const store = (key, value) => { try { localStorage.setItem('worldstereo.' + key, value); } catch { /* private window */ } };
  const send = (kind, data = {}) => page[kind]?.('input', data);

  // ---- theme
  const system = matchMedia('(prefers-color-scheme: dark)');
  const paint = () => document.body.classList.toggle('dark', (stored('theme') ?? (system.matches ? 'dark' : 'light')) === 'dark');
  paint();
  system.addEventListener('change', paint);

  // ---- clicks: local ones here, the others to the handler of their kind
  const local = {
    theme: () => { store('theme', document.body.classList.contains('dark') ? 'light' : 'dark'); paint(); },
    shot: () => {
      // The viewport draws only when something changes, and a canvas can be read only in the very
      // frame that drew it: nudge it, and look after each frame until it is not empty.
      const view = frame()?.contentWindow, all = [...(view?.document.querySelectorAll('canvas') ?? [])];
      const canvas = all.sort((a, b) => b.width * b.height - a.width * a.height)[0];
      if (!canvas?.width) return;
      const copy = Object.assign(document.createElement('canvas'), { width: canvas.width, height: canvas.height });
      const pen = copy.getContext('2d', { willReadFrequently: true });
      let tries = 40;
      const look = () => {
        pen.drawImage(canvas, 0, 0);
        if (pen.getImageData(copy.width >> 1, copy.height >> 1, 1, 1).data[3] > 0) {
          const link = Object.assign(document.createElement('a'), { download: 'worldstereo.png', href: copy.toDataURL('image/png') });
          link.click();
        } else if (--tries > 0) view.requestAnimationFrame(look);
      };
      view.requestAnimationFrame(look);
      canvas.dispatchEvent(new view.WheelEvent('wheel', { deltaY: 1, bubbles: true }));
      canvas.dispatchEvent(new view.WheelEvent('wheel', { deltaY: -1, bubbles: true }));
    },
    keys: () => { const box = $('#keys'); if (box.open) box.close(); else box.showModal(); },
    history: () => { const box = $('#history'); if (box.open) box.close(); else box.showModal(); },
  };
  const act = (element, event) => {
    const data = { ...element.dataset };
    if (element.matches('.pixels') && event?.clientX !== undefined) {
      const box = element.getBoundingClientRect();
      data.x = (event.clientX - box.left) / box.width;
      data.y = (event.clientY - box.top) / box.height;
    }
    if (local[data.send]) local[data.send](); else send(data.send, data);
  };
  const hintDone = () => { store('hint', 'closed'); if ($('#hint')) $('#hint').style.display = 'none'; };
  document.addEventListener('click', (event) => {
    if (event.target.closest('#generate')) { hintDone(); shut.clear(); } // it was followed
    const hit = event.target.closest('[data-send], [data-hint], [data-close], [data-dialog-close], [data-film]');
    if (!hit || hit.disabled) return;
    if (hit.dataset.film) { filmActions[hit.dataset.film]?.(hit); return; }
    if (hit.dataset.send === 'watch') shut.clear();
    if (hit.dataset.send === 'goto') hit.closest('dialog').close();
    if (hit.dataset.send) act(hit, event);
    else if ('hint' in hit.dataset) hintDone();
    else if ('close' in hit.dataset) hit.closest('.refusal').remove();
    else hit.closest('dialog').close();
  });
  let focused = '';
  document.addEventListener('focusin', (event) => { focused = event.target.id || ''; });

  // ---- the film: frames of one element, played here; a film that was closed stays closed
  const SPEEDS = [1, 0.5, 0.25, 2], shut = new Set();
  let film = null; // {root, frames, at, speed, loop, timer}
  const draw = (at) => {
    const { root, frames } = film;
    if (at !== film.at) wipe(); // strokes are of one frame
    film.at = Math.max(0, Math.min(frames.length - 1, at));
    root.querySelector('img').src = frames[film.at];
    if (film.second) root.querySelector('img[data-second]').src = film.second[film.at];
    root.querySelector('[data-film=scrub]').value = film.at;
    root.querySelector('[data-film-at]').textContent = `${film.at + 1} / ${frames.length}`;
    const first = +root.dataset.first;
    document.querySelectorAll('.pic.now').forEach((one) => one.classList.remove('now'));
    if (first >= 0) document.querySelector(`.pic[data-view="${first + film.at}"]`)?.classList.add('now');
  };
  const rest = () => { clearInterval(film?.timer); film?.root.removeAttribute('data-playing'); };
  const roll = () => {
    rest();
    if (film.at >= film.frames.length - 1) draw(0);
    film.root.setAttribute('data-playing', '');
    film.timer = setInterval(() => {
      if (!film.root.isConnected) return rest();
      if (film.at < film.frames.length - 1) draw(film.at + 1);
      else if (film.loop) draw(0); else rest();
    }, 1000 / (+film.root.dataset.fps * film.speed));
  };
  const pace = (speed) => { film.speed = speed; film.root.querySelector('[data-film=speed]').textContent = `${speed}×`; };
  const closeFilm = () => {
    const root = $('.player');
    if (!root || root.hidden) return false;
    rest(); root.hidden = true; shut.add(root.dataset.serial);
    document.querySelectorAll('.pic.now').forEach((one) => one.classList.remove('now'));
    return true;
  };
  // the brush: strokes on a frame, in shares of its width and height
  const inner = () => { // where the picture is in its element, which it need not fill
    const image = film.root.querySelector('img'), box = image.getBoundingClientRect();
    const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    const [w, h] = [scale * image.naturalWidth, scale * image.naturalHeight];
    return { x: (box.width - w) / 2, y: (box.height - h) / 2, w, h, box };
  };
  const breadth = () => +film.root.querySelector('[data-film=width]').value / 100;
  const ink = () => {
    const canvas = film.root.querySelector('.brush'), { x, y, w, h, box } = inner(), pen = canvas.getContext('2d');
    [canvas.width, canvas.height] = [Math.round(box.width), Math.round(box.height)];
    [pen.lineCap, pen.lineJoin, pen.lineWidth, pen.strokeStyle] = ['round', 'round', breadth() * w, '#ff3fb4'];
    pen.rect(x, y, w, h);
    pen.clip();
    for (const stroke of film.strokes) {
      pen.beginPath();
      for (const [u, v] of [stroke[0], ...stroke]) pen.lineTo(x + u * w, y + v * h);
      pen.stroke();
    }
    if (film.pen && document.activeElement === canvas) { // where the keys have taken the brush
      pen.beginPath();
      pen.arc(x + film.pen[0] * w, y + film.pen[1] * h, Math.max(3, breadth() * w / 2), 0, 2 * Math.PI);
      [pen.lineWidth, pen.strokeStyle] = [2, film.line ? '#ff3fb4' : '#fff'];
      pen.stroke();
    }
    for (const button of film.root.querySelectorAll('[data-film=brushed]')) button.disabled = film.strokes.length === 0;
  };
  const wipe = () => { film.line = null; if (film.strokes.length) { film.strokes = []; ink(); } };
  const steer = (dx, dy, begin) => { // the brush by keys: `begin` starts a stroke, or ends it
    film.pen = [film.pen?.[0] ?? 0.5, film.pen?.[1] ?? 0.5].map((part, i) => Math.round(1e4 * Math.max(0, Math.min(1, part + [dx, dy][i]))) / 1e4);
    if (begin) { film.line = film.line ? null : []; if (film.line) film.strokes.push(film.line); }
    film.line?.push(film.pen);
    ink();
  };
  let drawing = null; // the stroke that a pointer is at
  const dab = (event) => {
    const { x, y, w, h, box } = inner();
    drawing.push([(event.clientX - box.left - x) / w, (event.clientY - box.top - y) / h].map((part) => Math.round(1e4 * Math.max(0, Math.min(1, part))) / 1e4));
    ink();
  };
  document.addEventListener('pointerdown', (event) => {
    if (!event.target.matches?.('.player .brush')) return;
    event.preventDefault();
    film.strokes.push(drawing = []);
    dab(event);
  });
  document.addEventListener('pointermove', (event) => { if (drawing) dab(event); });
  for (const end of ['pointerup', 'pointercancel']) document.addEventListener(end, () => { drawing = null; });

  const filmActions = {
    brush: (button) => {
      rest();
      const on = film.root.toggleAttribute('data-brush');
      button.setAttribute('aria-pressed', on);
      [film.strokes, film.line] = [[], null];
      if (on) film.root.querySelector('.brush').focus();
      ink();
    },
    brushed: (button) => send('brushed', { kind: button.dataset.kind, clip: film.root.dataset.clip, frame: film.at, width: breadth(), strokes: film.strokes }),
    wipe: () => wipe(),
    toggle: () => { if (film.root.hasAttribute('data-playing')) rest(); else roll(); },
    speed: () => { pace(SPEEDS[(SPEEDS.indexOf(film.speed) + 1) % SPEEDS.length]); if (film.root.hasAttribute('data-playing')) roll(); },
    loop: (button) => { film.loop = !film.loop; button.setAttribute('aria-pressed', film.loop); },
    full: () => { if (document.fullscreenElement) document.exitFullscreen(); else film.root.requestFullscreen?.(); },
    close: closeFilm,
  };
  const showFilm = () => {
    const root = $('.player');
    if (!root || root.dataset.known) return;
    root.dataset.known = '1';
    if (shut.has(root.dataset.serial)) { root.hidden = true; return; }
    if (!root.dataset.frames) return;
    rest();
    const frames = root.dataset.frames.split('|'), seconds = frames.length / +root.dataset.fps;
    film = { root, frames, second: root.dataset.second ? root.dataset.second.split('|') : null, at: 0, loop: false, strokes: [] };
    pace(seconds >= 3 ? 1 : seconds >= 1.5 ? 0.5 : 0.25); // a short clip is seen, not flashed
    draw(0);
    if (!matchMedia('(prefers-reduced-motion: reduce)').matches) roll();
  };
  document.addEventListener('change', (event) => {
    if (event.target.id !== 'language') return;
    const url = new URL(location.href); // the same world, in other words
    url.searchParams.set('lang', event.target.value);
    location.assign(url);
  });
  document.addEventListener('change', (event) => { if (event.target.matches('[data-beside]')) send('beside', { clip: event.target.dataset.clip, key: event.target.value }); });
  document.addEventListener('input', (event) => { if (event.target.dataset?.film === 'scrub') { rest(); draw(+event.target.value); } else if (event.target.dataset?.film === 'width') ink(); });

  // ---- keys: also inside the viewport, which takes the focus while flying
  const press = (selector) => { const button = $(selector); if (button && !button.disabled && button.offsetParent) button.click(); };
  const keys = {
    g: () => press('#generate'), Escape: () => { if ($('#cancel')?.offsetParent) press('#cancel'); else closeFilm(); }, Space: () => { if (film?.root.isConnected && !film.root.hidden) filmActions.toggle(); },
    p: () => press('#act-play'), y: () => local.history(), k: () => press('#act-keyframe'), f: () => press('#act-record'), l: () => press('#act-live'), r: () => press('#act-here'),
    m: () => press('#act-measure'), b: () => press('#act-select'), h: () => press('#act-home'),
    z: () => press('#act-undo'), Z: () => press('#act-redo'), c: () => press('#act-shot'),
    Delete: () => send('delete'), Backspace: () => send('delete'), t: () => local.theme(), '?': () => local.keys(),
    '[': () => send('scrub', { by: -1 }), ']': () => send('scrub', { by: 1 }),
  };
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const typed = (element) => element?.closest?.('textarea, select, [contenteditable=true], input:not([type=range], [type=radio], [type=checkbox])');
  const onKey = (event) => {
    const target = event.target;
    if (typed(target) || event.altKey || event.defaultPrevented) return;
    if (target?.matches?.('.pixels') && (arrows[event.key] || event.key === 'Enter')) {
      const [dx, dy] = arrows[event.key] ?? [0, 0], step = event.shiftKey ? 0.05 : 0.01;
      send('pixel', { ...target.dataset, x: +(target.dataset.px ?? 0.5) + dx * step, y: +(target.dataset.py ?? 0.5) + dy * step });
      return event.preventDefault();
    }
    if (target?.matches?.('.brush') && (arrows[event.key] || event.key === ' ')) {
      const step = event.shiftKey ? 0.05 : 0.01;
      steer(...(arrows[event.key] ?? [0, 0]).map((part) => part * step), event.key === ' ');
      return event.preventDefault();
    }
    if (event.ctrlKey || event.metaKey) {
      if (event.key.toLowerCase() === 'z') { press(event.shiftKey ? '#act-redo' : '#act-undo'); event.preventDefault(); }
      return;
    }
    if (($('#keys')?.open && event.key !== '?') || ($('#history')?.open && event.key !== 'y')) return;
    const tab = '12345'.indexOf(event.key);
    if (tab >= 0 && event.key.length === 1) document.querySelectorAll('#tabs .tab-container[role=tablist] button')[tab]?.click();
    else if (event.key === ' ') { if (!target?.closest?.('button, input, label, a')) keys.Space(); }
    else keys[event.key]?.();
  };
  document.addEventListener('keydown', onKey);
  // the viewport is a frame of its own: that it has the focus shows only to who came by keys
  const mark = (name, on) => $('#shell')?.toggleAttribute(name, on);
  const byHand = () => mark('data-by-keys', false);
  document.addEventListener('keydown', (event) => { if (event.key === 'Tab') mark('data-by-keys', true); });
  window.addEventListener('blur', () => mark('data-in-stage', document.activeElement === frame()));
  window.addEventListener('focus', () => mark('data-in-stage', false));
  document.addEventListener('pointerdown', byHand);

  // ---- the map: where the visitor is, in the plane that the map's element describes
  let camera = null;
  const here = (event) => {
    if (event) camera = event;
    const map = $('.map svg'), mark = map?.querySelector('.here');
    if (!mark || !camera) return;
    const [ux, uy, uz, vx, vy, vz, u0, v0, k] = map.dataset.plane.split(',').map(Number);
    const on = (p, d) => [d * k * (p[0] * ux + p[1] * uy + p[2] * uz), d * k * (p[0] * vx + p[1] * vy + p[2] * vz)];
    const [x, y] = on(camera.position, 1), [dx, dy] = on(camera.forward, 1);
    const box = map.viewBox.baseVal, clip = (value, most) => Math.max(4, Math.min(most - 4, value));
    mark.setAttribute('transform', `translate(${clip(x - k * u0, box.width)} ${clip(y - k * v0, box.height)}) rotate(${Math.atan2(dy, dx) * 180 / Math.PI})`);
    mark.removeAttribute('hidden');
  };

  // ---- a label on the remembered view under the pointer
  const label = Object.assign(document.createElement('div'), { id: 'view-label', className: 'chip', hidden: true });
  document.body.append(label);
  const hover = (event) => {
    const view = frame()?.contentWindow, { camera: eye, nodeRefFromName: nodes } = view?.__viserMutable ?? {};
    let nearest = 26, found = null; // px
    if (eye && nodes && event.pointerType === 'mouse' && !event.buttons && event.type === 'pointermove') for (const picture of document.querySelectorAll('.film .pic[data-view]')) {
      const node = nodes[`/views/${picture.dataset.view.padStart(4, '0')}`];
      if (!node?.visible) continue;
      const at = node.getWorldPosition(node.position.clone()).project(eye);
      const x = (at.x + 1) / 2 * view.innerWidth, y = (1 - at.y) / 2 * view.innerHeight, away = Math.hypot(x - event.clientX, y - event.clientY);
      if (Math.abs(at.z) <= 1 && away < nearest) [nearest, found] = [away, { picture, x, y }];
    }
    label.hidden = !found;
    if (!found) return;
    const box = frame().getBoundingClientRect();
    label.textContent = `${found.picture.querySelector('img').alt}, ${found.picture.querySelector('.cap span:last-child').textContent}`;
    label.style.left = `${box.left + Math.max(60, Math.min(box.width - 60, found.x))}px`;
    label.style.top = `${box.top + Math.max(40, found.y)}px`;
  };

  // ---- the viewport: its token is the page's address, its socket brings picks and changes
  let socket = null, wait = 1000, known = '';
  const listen = (source) => {
    if (socket && socket.readyState <= 1) return;
    const url = new URL('events', new URL(source.split('?')[0], document.baseURI));
    url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
    socket = new WebSocket(url);
    socket.onopen = () => { wait = 1000; };
    socket.onmessage = (message) => {
      const event = JSON.parse(message.data);
      if (event.kind === 'job' && event.state === 'running') setTimeout(() => { if (!$('#cancel')?.offsetParent) send('follow'); }, 2000);
      else if (event.kind === 'camera') here(event);
      else send(event.kind === 'ghost' ? 'ghost' : 'stage', event);
    };
    socket.onclose = () => { socket = null; wait = Math.min(2 * wait, 15000); };
  };
  const renderer = () => {
    const gl = document.createElement('canvas').getContext('webgl');
    const info = gl?.getExtension('WEBGL_debug_renderer_info');
    const name = gl ? gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER) : 'none';
    gl?.getExtension('WEBGL_lose_context')?.loseContext();
    return name;
  };
  const tend = () => {
    const source = frame()?.getAttribute('src');
    if (source) {
      const token = source.match(/viewport\/([^/]+)\//)?.[1];
      const view = frame().contentWindow;
      if (view && !view.worldstereoKeys) { view.worldstereoKeys = true; view.addEventListener('keydown', onKey); view.addEventListener('pointerdown', byHand); for (const kind of ['pointermove', 'pointerleave']) view.document.addEventListener(kind, hover); view.addEventListener('dragenter', (event) => { if (carries(event)) offer(); }); }
      if (token && token !== known && page.renderer) {
        known = token;
        const url = new URL(location.href);
        url.searchParams.set('world', token);
        history.replaceState(null, '', url);
        send('renderer', { name: renderer(), still: matchMedia('(prefers-reduced-motion: reduce)').matches });
      }
      listen(source);
    }
    setTimeout(tend, socket?.readyState <= 1 ? 500 : Math.max(500, wait));
  };
  tend();

  // ---- files dropped anywhere: two places to let go, one where nothing can be added
  const said = (name) => $('[data-words]')?.dataset[name] ?? '';
  const whyNot = () => { try { return JSON.parse($('[data-why]')?.dataset.why || '{}'); } catch { return {}; } }; // half rendered
  const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');
  const offer = () => {
    if ($('#drop')) return;
    const why = whyNot(), box = Object.assign(document.createElement('div'), { id: 'drop' });
    for (const [id, text] of [['upload', said('open')], ['add-photos', said('add')]]) {
      const reason = why['#' + id];
      if (id !== 'upload' && (reason || !$('.film .pic'))) continue;
      const place = Object.assign(document.createElement('div'), { textContent: reason ?? text });
      if (!reason) place.dataset.drop = id;
      box.append(place);
    }
    document.body.append(box);
  };
  const hand = (id, files, tries = 50) => {
    const input = document.getElementById(id)?.parentElement.querySelector('input[type=file]');
    if (input) {
      input.files = files;
      input.dispatchEvent(new Event('change', { bubbles: true }));
    } else if (tries > 0) setTimeout(() => hand(id, files, tries - 1), 100); // its tab is being drawn
  };
  for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) document.addEventListener(kind, (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    const place = event.target.closest?.('[data-drop]');
    if (kind === 'drop') {
      $('#drop')?.remove();
      if (!place) return;
      $('#tabs .tab-container[role=tablist] button')?.click(); // World: what becomes of them is said there
      hand(place.dataset.drop, event.dataTransfer.files);
    } else if (kind === 'dragleave') { if (!event.relatedTarget) $('#drop')?.remove(); } else {
      offer();
      event.dataTransfer.dropEffect = place ? 'copy' : 'none';
      for (const one of document.querySelectorAll('[data-drop]')) one.toggleAttribute('data-over', one === place);
    }
  });

  // ---- small things that Gradio's components do not say about themselves
  const labels = JSON.parse(said('words') || '{}');
  document.documentElement.lang = said('language') || 'en';
  let strip = null, newest = '', scrolled = 0;
  document.addEventListener('scroll', (event) => { if (event.target === strip && strip.isConnected) scrolled = strip.scrollLeft; }, true);
  const bar = (element, on) => { for (const one of element.matches('button') ? [element] : element.querySelectorAll('input')) if (one.disabled !== on) one.disabled = on; };
  const explain = () => {
    showFilm();
    here();
    if (stored('hint') === 'closed' && $('#hint')) $('#hint').style.display = 'none';
    const why = whyNot();
    for (const element of document.querySelectorAll('[data-told]')) if (!(element.dataset.told in why)) {
      element.removeAttribute('title'); bar(element, false); delete element.dataset.told;
    }
    for (const [selector, reason] of Object.entries({ ...labels, ...why })) for (const element of document.querySelectorAll(selector)) {
      if (element.title !== reason) element.title = reason;
      if (selector in why) { element.dataset.told = selector; bar(element, true); }
    }
    const file = $('[data-download]'); // an export is ready: take it home without a second click
    if (file && !file.dataset.taken) { file.dataset.taken = '1'; setTimeout(() => ($('a#download, #download a') ?? $('#download'))?.click(), 200); }
    const film = $('.film'); // the newest view comes into sight; otherwise the strip stays where it was
    const latest = film?.dataset.newest ?? ''; // none in an empty strip
    if (film && (film !== strip || latest !== newest)) {
      const fresh = newest && latest !== newest && !latest.startsWith('0.0.0');
      [strip, newest] = [film, latest];
      film.scrollLeft = fresh ? film.scrollWidth : scrolled;
    }
    if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus({ preventScroll: true });
  };
  let due = 0;
  new MutationObserver(() => { due ||= setTimeout(() => { due = 0; explain(); }, 60); }).observe(document.body, { childList: true, subtree: true, attributeFilter: ['disabled'] }); // Gradio enables again what it redraws
  explain();
}
