# The app on a machine without a GPU or a network: docker build -t worldstereo . && docker run -p 127.0.0.1:7860:7860 worldstereo
FROM python:3.11-slim
RUN useradd --create-home --uid 1000 user && mkdir /data && chown user /data
USER user
WORKDIR /home/user/app
ENV PATH=/home/user/.local/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
COPY --chown=user requirements.txt .
RUN pip install --user --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt
COPY --chown=user app.py LICENSE README.md ./
COPY --chown=user assets assets
COPY --chown=user worldstereo worldstereo
COPY --chown=user ui ui
# compiles the kernels and prepares the example, so that the first visitor does not wait for them
RUN python app.py --prepare --projects /data
# a container's own loopback reaches nobody: publish the port on the host's loopback, as above
ENV GRADIO_SERVER_NAME=0.0.0.0 PORT=7860
EXPOSE 7860
VOLUME /data
HEALTHCHECK CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/healthz', timeout=5)"
CMD ["python", "app.py", "--projects", "/data"]
