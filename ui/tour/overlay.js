// Title card, captions and a pointer over the page of a tour; none of them takes part in the page.
() => {
  if (document.querySelector('#tour')) return;
  const root = document.createElement('div');
  root.id = 'tour';
  root.setAttribute('aria-hidden', 'true');
  root.innerHTML = `<style>
    #tour, #tour * {pointer-events: none; font-family: Inter, system-ui, sans-serif}
    #tour {position: fixed; inset: 0; z-index: 99999}
    #tour-card {position: absolute; inset: 0; display: flex; flex-direction: column; gap: 16px;
      align-items: center; justify-content: center; background: #14161a; color: #f2f3f5; transition: opacity .5s}
    #tour-card b {font-size: 56px; font-weight: 600} #tour-card span {font-size: 24px; opacity: .75}
    #tour-caption {position: absolute; left: 50%; bottom: 15%; transform: translateX(-50%); max-width: 60%;
      padding: 12px 22px; border-radius: 10px; background: rgba(16, 18, 22, .82); color: #fff; font-size: 26px;
      text-align: center; transition: opacity .3s}
    #tour-pointer {position: absolute; width: 22px; height: 22px; margin: -11px 0 0 -11px; border-radius: 50%;
      background: rgba(255, 255, 255, .35); border: 2px solid #fff; box-shadow: 0 0 8px rgba(0, 0, 0, .6);
      left: 50%; top: 60%; transition: transform .15s}
    #tour-pointer.down {transform: scale(.6)}
  </style><div id="tour-pointer"></div><div id="tour-caption" style="opacity: 0"></div>
  <div id="tour-card"><b></b><span></span></div>`;
  document.body.append(root);
  const find = (name) => root.querySelector(name);
  window.tour = {
    card: (title, subtitle) => {
      find('#tour-card b').textContent = title;
      find('#tour-card span').textContent = subtitle;
      find('#tour-card').style.opacity = title || subtitle ? 1 : 0;
    },
    caption: (text) => {
      if (text) find('#tour-caption').textContent = text;
      find('#tour-caption').style.opacity = text ? 1 : 0;
    },
    pointer: (x, y, down) => {
      const dot = find('#tour-pointer');
      dot.style.left = `${x}px`;
      dot.style.top = `${y}px`;
      dot.classList.toggle('down', down);
    },
    hide: (hidden) => { root.style.display = hidden ? 'none' : ''; },
  };
}
